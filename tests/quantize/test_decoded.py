from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packed import EVERYTHING, TIMESTEPS, quantized_parts
from torch import nn

from compress.formats import WeightSpec, quantize_weight
from compress.quantize.decoded import DecodedLayer, decode_layers
from compress.quantize.modules import QuantLinear, packed_layer
from compress.quantize.spec import ActivationSpec, LayerSpec

WEIGHTS = [
    WeightSpec("int8", "tensor", None),
    WeightSpec("int6", "channel", None),
    WeightSpec("int4", "group", 32, scale_dtype="float16"),
    WeightSpec("int4", "channel", None, symmetric=False),
    WeightSpec("int2", "group", 8),
    WeightSpec("fp4_e2m1", "group", 16),
    WeightSpec("nf4", "channel", None),
    WeightSpec.natural("mxfp4"),
    WeightSpec.natural("nvfp4"),
]
INPUTS = [None, ActivationSpec("int8", "dynamic"), ActivationSpec("int6", "dynamic"), ActivationSpec("int8", "static")]


def packed(layer: nn.Module, weights: WeightSpec, inputs: ActivationSpec | None) -> nn.Module:
    twin = packed_layer(layer, LayerSpec(weights, inputs), device="cpu")
    static = inputs is not None and inputs.mode == "static"
    twin.fill(
        quantize_weight(layer.weight, weights), layer.bias, {"input_scale": torch.tensor([0.03])} if static else {}
    )
    return twin


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{w.format}-{w.granularity}")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(48, 7), (3, 5, 48)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9)),
        (nn.Conv2d(8, 8, 3, groups=4, bias=False), (2, 8, 5, 5)),
    ],
    ids=["linear", "conv2d", "grouped"],
)
def test_equals_the_reference_to_the_bit(layer, shape, weights, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    twin = packed(layer, weights, inputs)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(DecodedLayer(twin)(x), twin(x))


def test_only_layers_of_the_reference_are_decoded() -> None:
    dynamic = ActivationSpec("int8", "dynamic")
    integers, floats = packed(nn.Linear(64, 64), WEIGHTS[0], dynamic), packed(nn.Linear(64, 64), WEIGHTS[0], None)
    model = nn.Sequential(
        nn.Sequential(integers, nn.ReLU(), floats), packed(nn.Conv2d(4, 4, 1), WEIGHTS[1], None), nn.Linear(2, 2)
    )
    decode_layers(model)
    kinds = [type(module) for module in (*model[0], model[1], model[2])]
    assert kinds == [QuantLinear, nn.ReLU, DecodedLayer, DecodedLayer, nn.Linear]
    assert model[1].weight.dtype == torch.float32


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{w.format}-{w.granularity}")
def test_a_model_keeps_its_outputs_to_the_bit(weights: WeightSpec) -> None:
    dynamic = ActivationSpec("int8", "dynamic")
    layers = [packed(nn.Conv2d(4, 8, 3, padding=1), weights, dynamic), nn.Flatten(2)]
    model = nn.Sequential(*layers, packed(nn.Linear(64, 24), weights, dynamic), packed(nn.Linear(24, 5), weights, None))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        assert torch.equal(decode_layers(model)(x), before)


def test_a_lone_layer_and_a_shared_one() -> None:
    layer = packed(nn.Linear(16, 16), WEIGHTS[0], None)
    assert isinstance(decode_layers(layer), DecodedLayer)
    model = nn.ModuleDict({"a": layer, "b": layer})
    decode_layers(model)
    assert isinstance(model["a"], DecodedLayer)
    assert model["a"] is model["b"]


def test_split_layers_keep_their_outputs_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    layer, spec = nn.Conv2d(8, 6, 3, padding=1), replace(EVERYTHING, split=3)
    split = packed_layer(layer, spec, "cpu")
    split.fill_parts(quantized_parts(layer.weight, spec), layer.bias)
    for part in (split.backbone, split.skip):
        part.clock.look(torch.tensor([TIMESTEPS[1], TIMESTEPS[2]]), 2)
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, weight = split(x), split.weight
        decode_layers(split)
        assert isinstance(split.backbone, DecodedLayer) and isinstance(split.skip, DecodedLayer)
        assert torch.equal(split(x), before)
        assert torch.allclose(split.weight, weight)
