"""Tables in the place of time embeddings: bit for bit what would be computed, and nothing for other timesteps."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from learned import tiny_adapter
from safetensors import safe_open
from tiny import tiny_model
from torch import nn

from compress.api import load, run
from compress.errors import CheckpointError, ModelError, RecipeError, RunError
from compress.export.trace import trace_denoiser
from compress.models.adapter import Adapter
from compress.models.source import open_adapter, resolve
from compress.quantize.cached_embeddings import (
    CachedEmbedding,
    EmbeddingCache,
    embedding_tables,
    swap_embeddings,
    time_embeddings,
)
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan

TIMESTEPS = (1.0, 251.0, 501.0, 751.0)


@pytest.fixture(params=["unet", "dit"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    return tiny_adapter(tmp_path / "model", request.param)


def cached(adapter: Adapter, timesteps: tuple[float, ...] = TIMESTEPS) -> nn.Module:
    """The model with filled tables."""
    model = adapter.load()
    tables = embedding_tables(adapter, model, timesteps)
    swap_embeddings(model, EmbeddingCache(tuple(tables), timesteps), device="cpu")
    for name, table in tables.items():
        model.get_submodule(name).load_state_dict({"table": table}, strict=True)
    return model


def test_cached_and_live_are_bit_equal(adapter: Adapter) -> None:
    """TFMQ-DM, specification 4f. In batches of eight, as diffusers computes a batch of samples at any timesteps."""
    live, table = adapter.load(), cached(adapter)
    inputs = adapter.example_inputs(8, seed=3)
    for t in (torch.full((8,), 501.0), torch.tensor(TIMESTEPS).repeat(2)):
        with torch.no_grad():
            expected = adapter.denoise(live, inputs.sample, t, inputs.condition)
            assert torch.equal(adapter.denoise(table, inputs.sample, t, inputs.condition), expected)


def test_every_class_and_the_null_class_share_the_table(adapter: Adapter) -> None:
    """[T, C] + [classes, C] holds what [T, classes, C] would: diffusers adds the two."""
    live, table = adapter.load(), cached(adapter)
    labels = torch.arange(11)
    sample = torch.randn(11, *adapter.sample_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.full((11,), 251.0)
    with torch.no_grad():
        expected = adapter.denoise(live, sample, t, {"class_labels": labels})
        assert torch.equal(adapter.denoise(table, sample, t, {"class_labels": labels}), expected)


def test_a_timestep_without_a_row_is_refused(adapter: Adapter) -> None:
    model, inputs = cached(adapter), adapter.example_inputs(2)
    with pytest.raises(RunError, match=r"no cached embedding for t = 502") as caught:
        adapter.denoise(model, inputs.sample, torch.tensor([501.0, 502.0]), inputs.condition)
    assert "1, 251, 501, 751" in str(caught.value)


def test_a_number_and_integers_are_timesteps_too(adapter: Adapter) -> None:
    model, inputs = cached(adapter), adapter.example_inputs(2)
    with torch.no_grad():
        many = adapter.denoise(model, inputs.sample, torch.tensor([501, 501]), inputs.condition)
        floats = adapter.denoise(model, inputs.sample, torch.tensor([501.0, 501.0]), inputs.condition)
    assert torch.equal(many, floats)


def test_few_timesteps_round_as_many_do(adapter: Adapter) -> None:
    model = adapter.load()
    many = embedding_tables(adapter, model, TIMESTEPS)
    one = embedding_tables(adapter, model, TIMESTEPS[2:3])
    for name, table in many.items():
        assert table.shape == (4, model.get_submodule(name).linear_2.out_features)
        assert torch.equal(one[name], table[2:3])


def test_a_copy_of_the_model_reads_its_own_time(adapter: Adapter) -> None:
    model, inputs = cached(adapter), adapter.example_inputs(2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = adapter.denoise(model, inputs.sample, torch.full((2,), 1.0), inputs.condition)
        adapter.denoise(twin, inputs.sample, torch.full((2,), 751.0), inputs.condition)
        clocks = [{id(m.clock) for m in one.modules() if isinstance(m, CachedEmbedding)} for one in (model, twin)]
        assert [len(found) for found in clocks] == [1, 1]
        assert clocks[0] != clocks[1]
        assert torch.equal(adapter.denoise(model, inputs.sample, torch.full((2,), 1.0), inputs.condition), before)


def test_the_time_embedding_is_a_gather_in_an_exported_program(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    model = cached(adapter)
    traced = trace_denoiser(adapter, model)
    operators = {str(node.target) for node in traced.program.graph.nodes if node.op == "call_function"}
    assert "aten.index_select.default" in operators
    inputs = adapter.example_inputs(3)
    t = torch.tensor([751.0, 1.0, 251.0])
    with torch.no_grad():
        conditions = [inputs.condition[name] for name in sorted(inputs.condition)]
        found = traced.program.module()(inputs.sample, t, *conditions)
        assert torch.allclose(found, adapter.denoise(model, inputs.sample, t, inputs.condition), atol=1e-5)


def test_the_entry_of_the_configuration() -> None:
    cache = EmbeddingCache(("time_embedding",), TIMESTEPS)
    assert EmbeddingCache.from_config({"cached_embeddings": cache.to_config()}) == cache
    assert EmbeddingCache.from_config({}) is None
    assert cache.replaces("time_embedding.linear_1.weight")
    assert not cache.replaces("time_embedding_2.linear_1.weight")
    for broken in ({"modules": ["a"]}, {"modules": [], "timesteps": [1]}, {"modules": ["a"], "timesteps": [2, 1]}, []):
        with pytest.raises(CheckpointError, match="cached_embeddings"):
            EmbeddingCache.from_config({"cached_embeddings": broken})


def test_only_time_embeddings_are_replaced(adapter: Adapter, tmp_path: Path) -> None:
    model = adapter.load()
    names = time_embeddings(adapter, model)
    wanted = ("time_embedding",)
    if adapter.family == "dit":
        wanted = tuple(f"transformer_blocks.{n}.norm1.emb.timestep_embedder" for n in range(2))
    assert names == wanted
    with pytest.raises(CheckpointError, match="no time embedding"):
        swap_embeddings(model, EmbeddingCache(("proj_out",), TIMESTEPS))


def test_a_family_that_does_not_know_its_conditioning(tmp_path: Path) -> None:
    tiny_model("UNet2DConditionModel").save_pretrained(tmp_path / "unet")
    text = open_adapter(resolve(str(tmp_path / "unet")))
    with pytest.raises(ModelError, match="not known"):
        time_embeddings(text, text.skeleton())


STAGE = {
    "kind": "quantize",
    "method": {"kind": "tfmq", "iterations": 2, "batch_size": 8, "embeddings": "cached"},
    "weights": {"format": "int8"},
    "activations": {"format": "int8", "granularity": "tensor", "mode": "static"},
}


def test_a_checkpoint_holds_tables(recipe_file, tmp_path: Path) -> None:
    """Through the stage, the plan, the file, `from_pretrained` and what measures the model."""
    entries = [{"kind": "temporal_error"}, {"kind": "latency", "batch": 2, "threads": 1, "rounds": 3, "memory": False}]
    path = recipe_file(stages=[STAGE], evaluate=entries, gates=[])
    run(path, output=tmp_path / "out")
    part = tmp_path / "out" / "checkpoint" / "transformer"
    [weights] = part.glob("*.safetensors")
    assert weights.stat().st_size == make_plan(load_recipe(path)).predicted_bytes
    with safe_open(weights, "pt") as file:
        names = set(file.keys())
    modules = [f"transformer_blocks.{n}.norm1.emb.timestep_embedder" for n in range(3)]
    assert {f"{module}.table" for module in modules} <= names
    assert not any("timestep_embedder.linear" in name for name in names)
    config = json.loads((part / "config.json").read_text())["quantization_config"]
    assert config["cached_embeddings"]["modules"] == modules
    assert len(config["cached_embeddings"]["timesteps"]) == 3
    assert not any("timestep_embedder" in name for name in config["ignore"])
    model = load(tmp_path / "out" / "checkpoint")
    tables = [module for module in model.modules() if isinstance(module, CachedEmbedding)]
    assert len(tables) == 3
    assert len({id(module.clock) for module in tables}) == 1
    with pytest.raises(RunError, match="no cached embedding"):
        model(torch.zeros(1, 1, 8, 8), timestep=torch.tensor([3.0]), class_labels=torch.tensor([0]))


@pytest.mark.slow
def test_onnx_gathers_from_the_tables(recipe_file, tmp_path: Path) -> None:
    path = recipe_file(stages=[STAGE], evaluate=[], export={"onnx": {"opset": 21}}, gates=[])
    outcome = run(path, output=tmp_path / "out")
    error = outcome.report.find("onnx_error", "onnx")
    assert error is not None
    assert error.value < 1e-3


def test_tables_need_every_step_of_the_sampler(recipe_file) -> None:
    calibration = {"sampler": {"kind": "ddim", "steps": 5}, "samples": 6, "timesteps": {"kind": "uniform", "count": 3}}
    path = recipe_file(stages=[STAGE], calibration=calibration, gates=[])
    with pytest.raises(RecipeError, match="cached embeddings need all 5 timesteps of the sampler"):
        make_plan(load_recipe(path))
    live = {**STAGE, "method": {"kind": "tfmq"}}
    assert make_plan(load_recipe(recipe_file(stages=[live], calibration=calibration, gates=[]))).layers
