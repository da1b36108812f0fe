"""What the quantize stage asks of a method, and gives it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_unet2d_pipeline

from compress.api import load, run
from compress.engine.job import run_recipe
from compress.engine.run import RunOptions
from compress.errors import RecipeError, RunError
from compress.models.adapter import Role
from compress.quantize.job import QuantizedLayer, QuantizeJob
from compress.quantize.methods import METHODS
from compress.quantize.methods.nearest import METHOD, Nearest
from compress.quantize.modules import SplitLayer
from compress.quantize.spec import LayerSpec
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan
from compress.stages.base import stage_kind

STATIC = {"format": "int8", "granularity": "tensor", "mode": "static"}


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"source": str(tiny_unet2d_pipeline(tmp_path_factory.mktemp("unet") / "model")), "device": "cpu"}


def stage(**changes: object) -> list[dict[str, Any]]:
    return [{"kind": "quantize", "weights": {"format": "int8"}, "activations": STATIC, **changes}]


def file_size(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))


def test_split_and_timed_layers_weigh_what_the_plan_says(recipe_file, unet: dict[str, str], tmp_path: Path) -> None:
    timed = STATIC | {"timesteps": "each", "symmetric": False}
    path = recipe_file(model=unet, stages=stage(split="concatenation", activations=timed), evaluate=[], gates=[])
    plan = make_plan(load_recipe(path))
    report = run(path, output=tmp_path / "out").report
    assert file_size(tmp_path / "out" / "checkpoint" / "unet") == plan.predicted_bytes
    rows = {row.name: row for row in plan.layers}
    model = load(tmp_path / "out" / "checkpoint")
    split = model.up_blocks[0].resnets[0].conv1
    assert isinstance(split, SplitLayer)
    assert len(split.backbone.spec.activations.timesteps) == 3
    row = rows["up_blocks.0.resnets.0.conv1"]
    assert row.formats == "int8 channel · int8 tensor static x3 t asym split"
    assert row.kernel and row.bytes_after == row.weights + 2 * 4 * row.shape[0]
    assert not torch.equal(split.backbone.input_scale, split.skip.input_scale)
    bits = report.find("bits_per_weight", "checkpoint")
    assert bits is not None
    assert bits.value == pytest.approx(8 * sum(r.bytes_after for r in rows.values()) / sum(map(len_of, rows.values())))


def len_of(row: Any) -> int:
    return int(row.weights)


def test_the_trajectorys_timesteps_are_known_before_it_is_logged(recipe_file, unet: dict[str, str]) -> None:
    calibration = {"sampler": {"kind": "ddim", "steps": 4}, "timesteps": {"kind": "uniform", "count": 2}, "samples": 2}
    path = recipe_file(model=unet, calibration=calibration, stages=stage(activations=STATIC | {"timesteps": "each"}))
    plan = make_plan(load_recipe(path))
    assert {row.formats for row in plan.layers} == {"int8 channel · int8 tensor static x2 t"}


def test_the_recipe_overrules_the_methods_split(recipe_file, unet: dict[str, str], monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "nearest", replace(METHOD, split="shortcut"))

    def split_layers(**changes: object) -> list[str]:
        plan = make_plan(load_recipe(recipe_file(model=unet, stages=stage(**changes))))
        return sorted({row.name.rpartition(".")[2] for row in plan.layers if row.formats.endswith(" split")})

    assert split_layers() == ["conv_shortcut"]
    assert split_layers(split="concatenation") == ["conv1", "conv_shortcut"]
    assert split_layers(split="none") == []


def test_a_split_that_no_layer_has_is_an_error(recipe_file) -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.split: `split: shortcut` matches no layer"):
        make_plan(load_recipe(recipe_file(stages=stage(split="shortcut"))))


def test_a_method_prepares_formats_with_what_it_asks(recipe_file, unet: dict[str, str], monkeypatch) -> None:
    """The plan and the run agree on what the method decides."""
    asked: list[Any] = []

    def prepare(settings: Nearest, assignments: Any, around: Any) -> Any:
        asked.append((around.conditioning(), around.timesteps()))
        return [replace(a, spec=None) if a.info.name in around.conditioning() else a for a in assignments]

    monkeypatch.setitem(METHODS, "nearest", replace(METHOD, prepare=prepare))
    plan = make_plan(load_recipe(recipe_file(model=unet, stages=stage())))
    names, timesteps = asked[0]
    assert {row.name for row in plan.layers if row.formats == "kept"} == names
    assert {"time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj"} <= names
    assert list(timesteps) == sorted(timesteps) and len(timesteps) == 3


def test_a_method_that_runs_the_model_gets_it_and_resumes(
    recipe_file, unet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def learn(settings: Nearest, job: QuantizeJob) -> Iterator[QuantizedLayer]:
        assert job.calibration is not None
        calibration = job.calibration
        model, again = calibration.load(), calibration.load()
        assert model is not again and not model.training
        assert next(model.parameters()).dtype == torch.float32
        assert len(calibration.trajectory()) > 0
        assert calibration.memory_budget == 10**11 and job.static_scales == {}
        done = calibration.work / "unit-0"
        seen.setdefault("found", []).append(done.exists())
        done.write_text("finished")
        seen["work"] = calibration.work
        if len(seen["found"]) == 1:
            raise RunError("killed")
        yield from METHOD.run(settings, job)

    method = replace(METHOD, run=learn, needs_trajectory=lambda settings: True, observes=False)
    monkeypatch.setitem(METHODS, "nearest", method)
    loaded = load_recipe(recipe_file(model=unet, stages=stage(activations={"format": "int8"}), evaluate=[], gates=[]))
    assert stage_kind(loaded.recipe.stages[0]).needs_trajectory(loaded.recipe.stages[0])
    options = RunOptions(tmp_path / "out", quiet=True, memory_budget=10**11)
    with pytest.raises(RunError, match="killed"):
        run_recipe(loaded, options)
    assert (seen["work"] / "unit-0").is_file()
    run_recipe(loaded, options)
    assert seen["found"] == [False, True]
    assert not seen["work"].exists()


def test_what_a_method_stores_wins_over_what_was_measured(
    recipe_file, unet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "conv_in"

    def learn(settings: Nearest, job: QuantizeJob) -> Iterator[QuantizedLayer]:
        for layer in METHOD.run(settings, job):
            own = [part._replace(inputs={"input_scale": torch.tensor([0.125])}) for part in layer.parts]
            yield layer._replace(parts=tuple(own)) if layer.name == name else layer
            assert layer.name in job.static_scales

    monkeypatch.setitem(METHODS, "nearest", replace(METHOD, run=learn))
    run(recipe_file(model=unet, stages=stage(), evaluate=[], gates=[]), output=tmp_path / "out")
    model = load(tmp_path / "out" / "checkpoint")
    assert model.conv_in.input_scale.tolist() == [0.125]
    assert model.conv_out.input_scale.tolist() != [0.125]
    assert isinstance(model.conv_in.spec, LayerSpec)


def test_the_default_leaves_layers_whole(recipe_file, unet: dict[str, str]) -> None:
    plan = make_plan(load_recipe(recipe_file(model=unet, stages=stage())))
    assert {row.formats for row in plan.layers if row.role == Role.SKIP} == {"int8 channel · int8 tensor static"}
