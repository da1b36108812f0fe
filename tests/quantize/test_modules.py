from dataclasses import replace

import pytest
import torch
from packed import TIMED, TIMED_ASYMMETRIC, TIMESTEPS, quantized_parts
from torch import nn
from torch.nn import functional as F

from compress.errors import UnsupportedLayer
from compress.formats import WeightSpec, dynamic_scale, get_format, quantize_dequantize, quantize_weight
from compress.quantize.clock import Clock, ClockHook
from compress.quantize.modules import PACKED_NAMES, QuantConv2d, QuantLinear, SplitLayer, packed_layer, swap_layers
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


FEATURES = [
    LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", False), split=8),
    LayerSpec(WeightSpec("int4", "group", 8), DYNAMIC8, split=8),
    LayerSpec(WeightSpec("int8"), None, smooth=True),
    LayerSpec(WeightSpec("int8"), TIMED),
    LayerSpec(WeightSpec("int4", symmetric=False), TIMED_ASYMMETRIC, split=16, smooth=True),
]


def part_output(layer: nn.Module, x: torch.Tensor, spec: LayerSpec, part, place, rows: torch.Tensor) -> torch.Tensor:
    """What one part gives, without bias and without the operator; `rows` is the timestep of every sample, by number."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    x = x.narrow(axis, place.start, place.stop - place.start)
    if "input_smooth" in part.inputs:
        x = x * part.inputs["input_smooth"].reshape((-1, 1, 1) if axis == 1 else (-1,))
    picked = [part.inputs.get(name) for name in ("input_scale", "input_zero_point")]
    if spec.activations is not None and spec.activations.timesteps:
        picked = [None if v is None else v[rows].reshape(-1, *(1 for _ in x.shape[1:])) for v in picked]
    x, weight = fake_input(x, spec.activations, *picked), part.weight.dequantize()
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.linear(x, weight)


@pytest.mark.parametrize("spec", FEATURES, ids=LayerSpec.summary)
@pytest.mark.parametrize("kernel", ["reference", ""])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(24, 10), (3, 5, 24)), (nn.Linear(24, 10), (3, 24)), (nn.Conv2d(24, 10, 3, 2, 1), (3, 24, 7, 9))],
    ids=["tokens", "rows", "images"],
)
def test_features_equal_fake_quantization(
    spec: LayerSpec, layer: nn.Module, shape: tuple[int, ...], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split layer is the sum of its parts; each sample has the scales of its timestep."""
    if kernel:
        monkeypatch.setenv("COMPRESS_KERNEL", kernel)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    parts, rows = quantized_parts(layer.weight, spec), torch.tensor([2, 0, 1])
    packed = packed_layer(layer, spec, "cpu")
    packed.fill_parts(parts, layer.bias)
    for module in packed.modules():
        if getattr(module, "clock", None) is not None:
            module.clock.look(torch.tensor(TIMESTEPS)[rows], 3)
    places = spec.parts(tuple(layer.weight.shape))
    outputs = [part_output(layer, x, spec, part, place, rows) for part, place in zip(parts, places, strict=True)]
    expected = sum(outputs) + layer.bias.reshape((-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,))
    with torch.no_grad():
        difference = (packed(x) - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 1e-6
    assert torch.allclose(packed.weight, torch.cat([part.weight.dequantize() for part in parts], 1))


def test_a_split_layer_stores_two_operators_and_one_bias() -> None:
    spec = replace(FEATURES[4], split=16)
    names = set(packed_layer(nn.Linear(24, 10), spec).state_dict())
    own = {"weight_packed", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point", "input_smooth"}
    assert names == {f"{part}.{name}" for part in ("backbone", "skip") for name in own} | {"backbone.bias"}
    assert own <= set(PACKED_NAMES)


@pytest.mark.parametrize(
    ("layer", "spec", "reason"),
    [
        (nn.Linear(8, 8), LayerSpec(WeightSpec("int8"), split=8), "at channel 8 of 8"),
        (nn.Conv2d(8, 8, 1, groups=2), LayerSpec(WeightSpec("int8"), split=2), "in groups cannot be split"),
        (nn.Conv2d(8, 8, 1, groups=2), LayerSpec(WeightSpec("int8"), smooth=True), "in groups cannot be smoothed"),
    ],
)
def test_what_cannot_be_split_or_smoothed(layer: nn.Module, spec: LayerSpec, reason: str) -> None:
    with pytest.raises(UnsupportedLayer, match=rf"^0: .*{reason}"):
        swap_layers(nn.Sequential(layer), {"0": spec})


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(sample)))


def test_layers_of_a_model_share_the_clock_of_their_timesteps() -> None:
    model = Denoiser()
    split, other = LayerSpec(WeightSpec("int8"), TIMED, split=4), replace(TIMED, timesteps=(1.0,))
    specs = {"first": split, "second": LayerSpec(WeightSpec("int8"), TIMED)}
    swap_layers(model, specs | {"third": LayerSpec(WeightSpec("int8"), other)}, "cpu")
    assert isinstance(model.first, SplitLayer)
    clock = model.second.clock
    assert isinstance(clock, Clock)
    assert clock is model.first.backbone.clock is model.first.skip.clock is not model.third.clock
    hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, ClockHook)]
    assert [hook.clock.timesteps for hook in hooks] == [TIMESTEPS, (1.0,)]
