"""Quantized attention from recipe to checkpoint and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import config_only_folder

from compress.api import load, run
from compress.errors import CompressError, UnsupportedLayer
from compress.models.source import open_adapter, resolve
from compress.quantize.attention_processor import SCALE_NAMES, QuantizedAttention
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan

STAGE: dict[str, Any] = {
    "kind": "quantize",
    "weights": {"format": "int8"},
    "activations": {"format": "int8"},
    "attention": {"bits": 8, "softmax_bits": 8},
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def made(recipe_file: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Output folder and recipe of a run with quantized attention."""
    path = recipe_file(stages=[STAGE], evaluate=[], gates=[])
    run(path, output=tmp_path / "out")
    return tmp_path / "out", path


def test_a_checkpoint_carries_its_attention(made: tuple[Path, Path]) -> None:
    out, recipe = made
    folder = out / "checkpoint" / "transformer"
    entry = json.loads((folder / "config.json").read_text())["quantization_config"]["attention"]
    assert (entry["num_bits"], entry["softmax_bits"], len(entry["targets"])) == (8, 8, 3)
    stored = load_file(folder / WEIGHTS)
    names = [f"{name}.processor.{scale}" for name in entry["targets"] for scale in SCALE_NAMES]
    assert {stored[name].dtype for name in names} == {torch.float32}
    assert (folder / WEIGHTS).stat().st_size == make_plan(load_recipe(recipe)).predicted_bytes
    model = load(out / "checkpoint")
    for name in entry["targets"]:
        processor = model.get_submodule(name).processor
        assert isinstance(processor, QuantizedAttention) and processor.bits == 8
        assert torch.equal(processor.key_scale, stored[f"{name}.processor.key_scale"])
        assert 0 < float(processor.query_scale) < 1
    half = open_adapter(resolve(str(out / "checkpoint"))).load(dtype="float16")
    assert half.get_submodule(entry["targets"][0]).processor.query_scale.dtype == torch.float32
    table = json.loads((out / "report" / "report.json").read_text())["tables"]
    rows = {row[0] for found in table if found["title"] == "Operators in floating point" for row in found["rows"]}
    assert "softmax" in rows and "attention queries with keys" not in rows


def test_off_is_the_same_checkpoint_as_without_the_key(
    recipe_file: Any, made: tuple[Path, Path], tmp_path: Path
) -> None:
    """Layers do not depend on attention, and `attention: null` is no attention."""
    for name, stage in (
        ("null", {**STAGE, "attention": None}),
        ("absent", {k: v for k, v in STAGE.items() if k != "attention"}),
    ):
        run(recipe_file(f"{name}.yaml", stages=[stage], evaluate=[], gates=[]), output=tmp_path / name)
    null, absent = (tmp_path / name / "checkpoint" / "transformer" for name in ("null", "absent"))
    assert (null / WEIGHTS).read_bytes() == (absent / WEIGHTS).read_bytes()
    assert (null / "config.json").read_bytes() == (absent / "config.json").read_bytes()
    off, on = load_file(null / WEIGHTS), load_file(made[0] / "checkpoint" / "transformer" / WEIGHTS)
    assert all(torch.equal(on[name], tensor) for name, tensor in off.items())
    assert {name.rpartition(".")[2] for name in on.keys() - off.keys()} == set(SCALE_NAMES)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_loading_is_strict(change: str, made: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "checkpoint", tmp_path / "copy")
    file = tmp_path / "copy" / "transformer" / WEIGHTS
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("value_scale"))
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors[name.replace("value", "other")] = torch.ones(1)
    else:
        tensors[name] = torch.ones(2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CompressError, match="scale"):
        load(tmp_path / "copy")


def test_attention_that_cannot_be_quantized_is_refused_before_work(recipe_file: Any, tmp_path: Path) -> None:
    """This U-Net has none."""
    levels = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    config = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
    folder = config_only_folder(tmp_path / "unet", {**config, **levels, "add_attention": False, "num_class_embeds": 11})
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    path = recipe_file(stages=[STAGE], evaluate=[], gates=[], model={"source": str(folder)})
    with pytest.raises(UnsupportedLayer, match="UNet2DModel has no attention"):
        make_plan(load_recipe(path))
