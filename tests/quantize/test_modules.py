import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import UnsupportedLayer
from compress.formats import WeightSpec, dynamic_scale, get_format, quantize_dequantize, quantize_weight
from compress.quantize.modules import PACKED_NAMES, QuantConv2d, QuantLinear, packed_layer, swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec

DYNAMIC8 = ActivationSpec("int8", "dynamic")
WEIGHTS = [
    WeightSpec("int8", "channel", None),
    WeightSpec("int8", "tensor", None),
    WeightSpec("int4", "group", 32, scale_dtype="float16"),
    WeightSpec("int4", "channel", None, symmetric=False),
    WeightSpec("int2", "group", 8),
    WeightSpec("fp8_e4m3", "channel", None),
    WeightSpec("fp8_e5m2", "tensor", None),
    WeightSpec("fp4_e2m1", "group", 16),
    WeightSpec("nf4", "channel", None),
    WeightSpec.natural("mxfp4"),
    WeightSpec.natural("nvfp4"),
]
INPUTS = [
    None,
    DYNAMIC8,
    ActivationSpec("fp8_e4m3", "dynamic"),
    ActivationSpec("fp4_e2m1", "dynamic"),
    ActivationSpec("int8", "static"),
    ActivationSpec("int8", "static", symmetric=False),
]


def fake_input(x: torch.Tensor, spec: ActivationSpec | None, scale: torch.Tensor | None, zero: torch.Tensor | None):
    """What the layer's input becomes, computed without the operator."""
    if spec is None:
        return x
    fmt = get_format(spec.operator_format)
    if spec.mode == "dynamic":
        scale = dynamic_scale(x, fmt, dims=tuple(range(1, x.dim())) if x.dim() == 4 else (-1,))
    return quantize_dequantize(x, fmt, scale, zero)


def static_tensors(spec: ActivationSpec | None) -> dict[str, torch.Tensor]:
    if spec is None or spec.mode == "dynamic":
        return {}
    tensors = {"input_scale": torch.tensor([0.031])}
    return tensors if spec.symmetric else tensors | {"input_zero_point": torch.tensor([117.0])}


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{w.format}-{w.granularity}")
def test_linear_equals_fake_quantization(weights: WeightSpec, inputs: ActivationSpec | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(33 if weights.granularity != "group" else 96, 31), None
    x = torch.randn(5, 7, layer.in_features)
    spec = LayerSpec(weights, inputs)
    quantized = quantize_weight(layer.weight, weights)
    packed = packed_layer(layer, spec, device="cpu")
    act = static_tensors(inputs)
    packed.fill(quantized, layer.bias, act)
    seen = fake_input(x, inputs, act.get("input_scale"), act.get("input_zero_point"))
    expected = F.linear(seen, quantized.dequantize(), layer.bias)
    with torch.no_grad():
        difference = (packed(x) - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 1e-6


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_equals_fake_quantization(groups: int, inputs: ActivationSpec | None) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(3, 8, 9, 7)
    spec = LayerSpec(WeightSpec("int4", "group", 16), inputs)
    quantized = quantize_weight(layer.weight, spec.weights)
    packed = packed_layer(layer, spec, device="cpu")
    assert isinstance(packed, QuantConv2d)
    act = static_tensors(inputs)
    packed.fill(quantized, layer.bias, act)
    seen = fake_input(x, inputs, act.get("input_scale"), act.get("input_zero_point"))
    expected = F.conv2d(seen, quantized.dequantize(), layer.bias, stride=2, padding=1, groups=groups)
    with torch.no_grad():
        difference = (packed(x) - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 1e-6


def test_state_holds_packed_tensors_only() -> None:
    layer = packed_layer(nn.Linear(64, 8), LayerSpec(WeightSpec("fp4_e2m1", "group", 16), DYNAMIC8), device="cpu")
    assert set(layer.state_dict()) == {"weight_packed", "weight_scale", "bias"}
    assert set(layer.state_dict()) - {"bias"} <= set(PACKED_NAMES)
    assert layer.weight.shape == (8, 64)
    assert layer.weight.dtype == torch.float32


def test_blocks_of_a_format_are_stored_in_its_types() -> None:
    stored = {}
    for name in ("mxfp4", "nvfp4"):
        layer = packed_layer(nn.Linear(64, 8), LayerSpec(WeightSpec.natural(name), DYNAMIC8), device="cpu")
        stored[name] = {part: (tuple(t.shape), t.dtype) for part, t in layer.state_dict().items() if "scale" in part}
        assert set(layer.state_dict()) - {"bias"} <= set(PACKED_NAMES)
    assert stored["mxfp4"] == {"weight_scale": ((8, 2), torch.uint8)}
    assert stored["nvfp4"] == {
        "weight_scale": ((8, 4), torch.float8_e4m3fn),
        "weight_scale_factor": ((1,), torch.float32),
    }


@pytest.mark.parametrize("name", ["nf4", "mxfp4", "nvfp4", "int4"])
def test_the_mode_reaches_the_operator(name: str) -> None:
    """Folded layers differ from exact ones, by at most the stated bound: half a step of the panel for each weight."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 8, bias=False), torch.randn(5, 64)
    weights = WeightSpec(name, "group", 16) if name == "int4" else WeightSpec.natural(name)
    quantized = quantize_weight(layer.weight, weights)
    outputs = []
    for mode in ("exact", "folded"):
        packed = packed_layer(layer, LayerSpec(weights, None, mode), device="cpu")
        packed.fill(quantized, None)
        outputs.append(packed(x))
    largest = {"int4": 8.0, "nf4": 1.0}.get(name, 6.0)
    unit = quantized.all_scales.values().amax(1) * largest / 127
    difference = (outputs[1] - outputs[0]).abs()
    assert float(difference.max()) > 0
    assert bool((difference <= x.abs().sum(1, keepdim=True) * unit / 2 * (1 + 1e-3)).all())


def test_swap_replaces_only_the_named_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4, bias=False))
    swap_layers(model, {"2": LayerSpec(WeightSpec("int8", "channel", None))})
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[2], QuantLinear)
    assert model[2].bias is None
    assert model[2].weight_packed.device.type == "meta"


def test_swap_names_what_it_cannot_pack() -> None:
    spec = LayerSpec(WeightSpec("int8", "channel", None))
    with pytest.raises(UnsupportedLayer, match="nowhere: the model has no such layer"):
        swap_layers(nn.Sequential(nn.Linear(8, 8)), {"nowhere": spec})
    with pytest.raises(UnsupportedLayer, match=r"^0: LayerNorm is neither"):
        swap_layers(nn.Sequential(nn.LayerNorm(8)), {"0": spec})
    with pytest.raises(UnsupportedLayer, match=r"^0: padding"):
        swap_layers(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")), {"0": spec})
