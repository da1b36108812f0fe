"""Simulated layers: off they are the original to the bit, hard they are what is packed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.errors import FormatError, UnsupportedLayer
from compress.formats import WeightSpec, get_format, quantize_dequantize, quantize_weight, weight_scales
from compress.models.adapter import LayerInfo, Role
from compress.quantize.clock import Clock
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings
from compress.quantize.simulate import InputQuantizer, SimulatedLayer, round_through, set_state, simulate
from compress.quantize.spec import ActivationSpec, LayerSpec

WEIGHTS = {
    "int8 channel": WeightSpec("int8"),
    "int4 channel asymmetric": WeightSpec("int4", symmetric=False),
    "int4 group": WeightSpec("int4", "group", 8, scale_dtype="float16"),
    "int3 tensor": WeightSpec("int3", "tensor"),
}


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(24, 10)


def conv(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(12, 6, 3, stride=2, padding=1)


def inputs_for(layer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 12, 9, 9) if isinstance(layer, nn.Conv2d) else (3, 5, 24)
    return torch.randn(shape, generator=generator)


def with_grid(layer: nn.Linear | nn.Conv2d, spec: LayerSpec, clock: Clock | None = None) -> SimulatedLayer:
    twin = SimulatedLayer("layer", layer, spec, clock)
    for part in twin.operators():
        part.set_grid(weight_scales(part.weight, spec.weights))
    return twin


@pytest.mark.parametrize("make", [linear, conv])
def test_off_is_the_original_to_the_bit(make) -> None:
    layer = make()
    x = inputs_for(layer)
    expected = layer(x)
    twin = with_grid(layer, LayerSpec(WEIGHTS["int4 group"], ActivationSpec("int8", "dynamic"), split=8))
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("name", WEIGHTS)
def test_nearest_codes_are_those_of_the_format(make, name: str) -> None:
    layer, spec = make(), LayerSpec(WEIGHTS[name])
    twin = with_grid(layer, spec)
    (part,) = twin.quantized().parts
    expected = quantize_weight(layer.weight, spec.weights)
    assert torch.equal(part.weight.codes, expected.codes)
    assert torch.equal(part.weight.scales, expected.scales)
    (simulated,) = twin.operators()
    for rounding in ("nearest", "hard"):
        assert torch.equal(simulated.effective_weight(rounding), expected.dequantize())


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("name", WEIGHTS)
def test_learning_starts_at_the_original_weight_and_rounds_to_a_neighbour(make, name: str) -> None:
    twin = with_grid(make(), LayerSpec(WEIGHTS[name]))
    (part,) = twin.operators()
    part.start_rounding()
    soft, rows = part.effective_weight("soft").flatten(1), part.rows
    ratio = rows / part._steps()
    low, high, zero = part._limits()
    inside = (ratio + part._expanded(zero) >= low) & (ratio + part._expanded(zero) <= high)
    assert float(inside.float().mean()) > 0.5
    assert torch.allclose(soft[inside], rows[inside], atol=1e-6)  # h(V0) is the fraction itself
    assert part.offset is not None
    part.offset.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    codes = part.codes().float()
    up = codes - (ratio.floor() + part._expanded(zero)).clamp(low, high)
    assert set(up.unique().tolist()) <= {0.0, 1.0}
    hard = part.effective_weight("hard").flatten(1)
    steps = part._steps().expand_as(hard)
    assert bool(((hard - rows).abs()[inside] < steps[inside] * (1 + 1e-5)).all())
    part.finish_rounding()
    assert part.offset is None
    assert torch.equal(part.codes().float(), codes)


def test_a_split_layer_with_equal_scales_is_the_unsplit_layer() -> None:
    layer = conv()
    whole = WeightSpec("int4")
    unsplit, split = with_grid(layer, LayerSpec(whole)), with_grid(layer, LayerSpec(whole, split=5))
    (one,) = unsplit.operators()
    for part in split.operators():
        assert one.scales is not None
        part.set_grid(one.scales)
    set_state([unsplit, split], rounding="hard")
    x = inputs_for(layer)
    assert torch.allclose(split(x), unsplit(x), atol=1e-5)
    shapes = [part.weight.shape for part in split.quantized().parts]
    assert shapes == [(6, 5, 3, 3), (6, 7, 3, 3)]


def test_split_halves_of_very_different_ranges_lose_far_less() -> None:
    torch.manual_seed(3)
    layer = nn.Conv2d(16, 8, 1)
    layer.weight.data[:, 8:] /= 200
    x = torch.randn(4, 16, 6, 6)
    x[:, 8:] *= 200
    activations = ActivationSpec("int8", "static")
    errors = []
    for split in (None, 8):
        twin = with_grid(layer, LayerSpec(WeightSpec("int8"), activations, split=split))
        for part in twin.operators():
            seen = x[:, part.part.start : part.part.stop]
            assert part.inputs is not None
            part.inputs.set(StaticScale((seen.abs().max() / 127).reshape(1), None))
        set_state([twin], rounding="hard", activations=True)
        errors.append(float((twin(x) - layer(x)).square().mean().detach()))
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize(("fmt", "symmetric"), [("int8", True), ("int8", False), ("int4", False)])
def test_static_inputs_round_as_the_operators_do(fmt: str, symmetric: bool) -> None:
    spec = ActivationSpec(fmt, "static", symmetric)
    quantizer = InputQuantizer(spec, None, images=False)
    zero = None if symmetric else torch.tensor([3.0])
    quantizer.set(StaticScale(torch.tensor([0.037]), zero))
    x = inputs_for(linear())
    expected = quantize_dequantize(x, get_format(spec.operator_format), torch.tensor([0.037]), zero)
    assert torch.equal(quantizer(x), expected)


def test_dynamic_inputs_have_a_scale_for_each_token_and_image() -> None:
    for layer in (linear(), conv()):
        images = isinstance(layer, nn.Conv2d)
        quantizer = InputQuantizer(ActivationSpec("int8", "dynamic"), None, images=images)
        x = inputs_for(layer)
        x[0] *= 100
        together, apart = quantizer(x), torch.cat([quantizer(row[None]) for row in x])
        assert torch.equal(together, apart)
        assert quantizer.scale is None


def test_each_sample_takes_the_scale_of_its_timestep_and_alone_gives_it_gradient() -> None:
    clock = Clock([0.0, 10.0, 20.0])
    quantizer = InputQuantizer(ActivationSpec("int8", "static", timesteps=clock.timesteps), clock, images=False)
    quantizer.set(StaticScale(torch.tensor([0.01, 0.1, 1.0]), None))
    x = inputs_for(linear())
    clock.look(torch.tensor([19.0, 4.0, 21.0]), 3)
    y = quantizer(x)
    for row, scale in zip(range(3), (1.0, 0.01, 1.0), strict=True):
        expected = quantize_dequantize(x[row], get_format("int8"), torch.tensor(scale))
        assert torch.equal(y[row], expected)
    y.square().sum().backward()
    assert quantizer.scale is not None
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad[1] == 0
    assert bool((quantizer.scale.grad[[0, 2]] != 0).all())


def test_the_clock_repeats_a_sample_for_every_row_folded_into_the_batch() -> None:
    clock = Clock([1.0, 5.0])
    clock.look(torch.tensor([1.0, 5.0]), 2)
    picked = clock.pick(torch.tensor([10.0, 50.0]), torch.zeros(6, 4))
    assert picked.flatten().tolist() == [10.0, 10.0, 10.0, 50.0, 50.0, 50.0]


def test_smoothing_changes_nothing_in_full_precision() -> None:
    layer = linear()
    twin = with_grid(layer, LayerSpec(WeightSpec("int8"), smooth=True))
    (part,) = twin.operators()
    assert part.smooth is not None
    part.smooth.copy_(torch.linspace(0.1, 10, 24))
    x = inputs_for(layer)
    y = part(x, "off", False, layer.bias)
    assert torch.allclose(y, layer(x), atol=1e-5)
    assert torch.equal(part.quantized().inputs["input_smooth"], part.smooth)


def test_rounding_passes_gradients_and_whole_numbers() -> None:
    x = torch.tensor([0.5, 1.5, 2.4], requires_grad=True)
    y = round_through(x)
    assert y.tolist() == [0.0, 2.0, 2.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_twins_take_the_layers_places_and_leave_the_network_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    original = copy.deepcopy(model)
    info = LayerInfo("2", "linear", Role.LINEAR, None, (4, 8), True)
    twins = simulate(model, [Assignment(info, LayerSpec(WeightSpec("int4")), ActivationSettings())])
    assert model[2] is twins["2"]
    x = torch.randn(5, 8)
    assert torch.equal(model(x), original(x))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_formats_and_layers_without_a_grid_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(3, 8))
    info = LayerInfo("0", "linear", Role.LINEAR, None, (8, 8), True)
    with pytest.raises(FormatError, match="no integer grid") as caught:
        simulate(model, [Assignment(info, LayerSpec(WeightSpec("fp4_e2m1")), ActivationSettings())])
    assert caught.value.where == "0"
    info = LayerInfo("1", "linear", Role.LINEAR, None, (3, 8), True)
    with pytest.raises(UnsupportedLayer, match="Embedding"):
        simulate(model, [Assignment(info, LayerSpec(WeightSpec("int4")), ActivationSettings())])
