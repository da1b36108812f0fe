"""The backend of each layer of a plan, known before there are weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.formats import WeightSpec, quantize_weight
from compress.kernels.backends import kernels_in_use, select
from compress.kernels.call import ConvCall, MatmulCall
from compress.kernels.cpu_library import library
from compress.quantize.modules import packed_layer, swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan
from compress.recipe.plan_kernels import LayerKernel, layer_kernels, summarize

INT8 = ActivationSpec("int8", "dynamic")
SPECS = (
    LayerSpec(WeightSpec("int4", "group", 16, scale_dtype="float16"), INT8),
    LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", symmetric=False)),
    LayerSpec(WeightSpec("nf4", "group", 32), INT8),
    LayerSpec(WeightSpec("nf4", "group", 32), INT8, mode="folded"),
    LayerSpec(WeightSpec.natural("nvfp4"), INT8),
    LayerSpec(WeightSpec("int4"), None),
)


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)


@pytest.mark.parametrize("spec", SPECS, ids=LayerSpec.summary)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_the_plan_names_the_backend_that_computes(spec: LayerSpec, kind: str) -> None:
    """From the meta device alone the same as from a layer with weights and an input."""
    torch.manual_seed(0)
    layer: Any = nn.Linear(64, 24) if kind == "linear" else nn.Conv2d(16, 24, 3, stride=2, padding=1)
    twin = packed_layer(layer, spec, "cpu")
    static = spec.activations is not None and spec.activations.mode == "static"
    act = {"input_scale": torch.ones(1), "input_zero_point": torch.zeros(1)} if static else {}
    twin.fill(quantize_weight(layer.weight.detach(), spec.weights), layer.bias.detach(), act)
    stored: Any = (twin.weight_packed, twin.weight_scale)
    if kind == "linear":
        call: Any = MatmulCall(torch.randn(5, 64), *stored, **twin.operator_arguments())
    else:
        geometry: Any = twin.geometry
        call = ConvCall(torch.randn(2, 16, 9, 9), *stored, **twin.operator_arguments(), **geometry)
    skeleton = nn.ModuleDict({"layer": layer.to("meta"), "kept": nn.Linear(4, 4)})
    swap_layers(skeleton, {"layer": spec})
    assert {name: found.backend for name, found in layer_kernels(skeleton).items()} == {
        "layer": select(call.name, call.facts()).name
    }


def test_a_split_layer_is_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its operators, one of few positions may go to another backend; the layer is named and counted once."""
    spec = LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", timesteps=(1.0, 2.0)), split=48)
    skeleton = Timed(nn.Linear(64, 24).to("meta"))
    swap_layers(skeleton, {"layer": spec})
    found = layer_kernels(skeleton)
    assert list(found) == ["layer"]
    assert summarize(found.values()).startswith(f"1 layer {found['layer'].backend} (")
    backends = iter([LayerKernel("cpu", ""), LayerKernel("reference", "too small")])
    monkeypatch.setattr("compress.recipe.plan_kernels._kernel", lambda call: next(backends))
    assert layer_kernels(skeleton) == {"layer": LayerKernel("cpu + reference", "too small")}


class Timed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        return self.layer(sample)


def test_a_sentence_for_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    floating = LayerKernel("reference", "activations are floating point")
    text = summarize([floating, *[LayerKernel("cpu", "")] * 3, floating])
    assert text == f"3 layers cpu ({kernels_in_use()}), 2 reference (activations are floating point)"
    assert summarize([LayerKernel("torch_int8", "no compiler")]) == "1 layer torch_int8 (no compiler)"
    assert summarize([]) == ""


def test_a_recipe(recipe_file, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [{"role": "modulation", "activations": {"format": "none"}}, {"role": "in_projection", "keep": True}]
    stage = {"kind": "quantize", "weights": {"format": "int8"}, "activations": {"format": "int8"}, "rules": rules}
    path: Path = recipe_file(stages=[stage])
    plan = make_plan(load_recipe(path))
    kernels = {row.role: row.kernel for row in plan.layers}
    fast = "cpu" if library() else "torch_int8"
    assert (kernels["modulation"], kernels["in_projection"], kernels["ff_in"]) == ("reference", "", fast)
    count = sum(row.role == "modulation" for row in plan.layers)
    assert f"{count} reference (" in plan.kernels and f" layers {fast} (" in plan.kernels
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    plan = make_plan(load_recipe(path))
    assert {row.kernel for row in plan.layers} == {"reference", ""}
    assert plan.kernels == f"{len(plan.layers) - 1} layers reference (COMPRESS_KERNEL=reference)"
