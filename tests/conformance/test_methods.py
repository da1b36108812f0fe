"""What every quantization method keeps to, from recipe to file, on a tiny model of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learned import tiny_adapter

from compress.api import load, run
from compress.quantize.calibrated import LearnedRounding
from compress.quantize.methods import METHODS
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan

LEARN_LITTLE = {"iterations": 4, "batch_size": 8, "learning_rate": 0.02, "inputs": 8}
FASTER: dict[str, dict[str, Any]] = {
    "quest": {"time": {"epochs": 1, "samples": 2}, "critical": {"epochs": 1, "samples": 4}},
}
"""More settings that let a method end soon, by its name."""

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_method_says_what_it_is(method: Any) -> None:
    settings = method.settings()
    assert settings.kind == method.name
    assert method.title and method.summary.endswith(".")
    assert any(year in method.citation for year in map(str, range(2014, 2027)))
    assert all(field.description for name, field in method.settings.model_fields.items() if name != "kind")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "unet"])
@every_method
def test_a_methods_files_are_what_the_plan_said_and_run(method: Any, family: str, recipe_file, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", family)
    little = LEARN_LITTLE if issubclass(method.settings, LearnedRounding) else {}
    stage = {
        "kind": "quantize",
        "method": {"kind": method.name, **little, **FASTER.get(method.name, {})},
        "weights": {"format": "int4", "symmetric": False},
        "activations": {"format": "int8", "granularity": "tensor", "mode": "static"},
        "rules": [{"role": "out_projection", "keep": True}],
    }
    path = recipe_file(model={"source": adapter.source.folder, "device": "cpu"}, stages=[stage], evaluate=[], gates=[])
    plan = make_plan(load_recipe(path))
    run(path, output=tmp_path / "out")
    files = list((tmp_path / "out" / "checkpoint" / adapter.source.denoiser).glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == plan.predicted_bytes
    inputs = adapter.example_inputs(2)
    with torch.no_grad():
        exact, found = (
            adapter.denoise(model, inputs.sample, inputs.timestep.float(), inputs.condition)
            for model in (adapter.load(), load(tmp_path / "out" / "checkpoint"))
        )
    assert 0 < float((found - exact).square().mean()) < 0.5 * float(exact.square().mean())
