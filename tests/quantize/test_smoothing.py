"""Smoothing: folding channel ranges changes nothing before rounding, and makes one scale fit all channels after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learned import INT4, STATIC, one_layer
from torch import Tensor, nn

from compress.formats import WeightSpec, get_format, weight_scales
from compress.quantize.observers.base import Range, static_scale
from compress.quantize.simulate import SimulatedLayer, set_state
from compress.quantize.smoothing import ChannelRanges, Smoothing, factors_by_part, smoothing_factors
from compress.quantize.spec import ActivationSpec, LayerPart, LayerSpec

INPUT4 = ActivationSpec("int4", "static")
UNEVEN = torch.logspace(-1.3, 1.3, 12)  # of twelve channels: a factor of 400 between the ends


def make(kind: str) -> nn.Linear | nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(12, 10) if kind == "linear" else nn.Conv2d(12, 6, 3, padding=1)


def uneven(kind: str, seed: int = 1) -> Tensor:
    shape, ranges = ((64, 12), UNEVEN) if kind == "linear" else ((4, 12, 7, 7), UNEVEN[:, None, None])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * ranges


def ranges_of(x: Tensor, settings: Smoothing) -> Tensor:
    seen = ChannelRanges(settings, images=x.dim() == 4)
    seen.update(x, torch.ones(len(x)))
    return seen.values()


def twin(kind: str, x: Tensor, settings: Smoothing | None, spec: LayerSpec) -> SimulatedLayer:
    """A simulated layer with factors and scales from x; `settings` None: without smoothing."""
    layer = SimulatedLayer("layer", make(kind), replace(spec, smooth=settings is not None))
    axis = 1 if kind == "conv" else -1
    for part in layer.operators():
        inside = x.narrow(axis, part.part.start, part.part.stop - part.part.start)
        if settings is not None:
            part.smooth.copy_(smoothing_factors(ranges_of(inside, settings), settings))
            inside = inside * part.smooth.reshape((-1, 1, 1) if axis == 1 else (-1,))
        part.set_grid(weight_scales(part.weight, spec.weights))
        if part.inputs is not None:
            kept = Range(float(inside.min()), float(inside.max()))
            part.inputs.set(static_scale(kept, get_format(part.inputs.spec.format), part.inputs.spec.symmetric))
    return layer


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("split", [None, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_folding_is_exact_without_rounding(kind: str, alpha: float, split: int | None) -> None:
    x = uneven(kind)
    layer = twin(kind, x, Smoothing(alpha=alpha), LayerSpec(WeightSpec("int8"), split=split))
    total = 0
    for part in layer.operators():  # in full precision, but through the smoothed weight and the smoothed input
        inside = x.narrow(1, part.part.start, part.part.stop - part.part.start)
        total = total + part(inside, "off", False, layer.layer.bias if part.part.start == 0 else None)
    assert relative_error(total, layer.layer(x)) < 1e-6


def test_full_strength_gives_every_channel_one_range() -> None:
    x = uneven("linear")
    factors = smoothing_factors(ranges_of(x, Smoothing()), Smoothing())
    reached = (x * factors).abs().amax(0)
    assert torch.allclose(reached, reached[0].expand(12), rtol=1e-5)
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-5)


def test_strength_lies_between_nothing_and_everything() -> None:
    ranges = torch.tensor([0.25, 1.0, 4.0])
    assert smoothing_factors(ranges, Smoothing(alpha=0.0)).tolist() == [1, 1, 1]
    assert smoothing_factors(ranges, Smoothing(alpha=0.5)).tolist() == pytest.approx([2, 1, 0.5])
    assert smoothing_factors(ranges, Smoothing(alpha=1.0)).tolist() == pytest.approx([4, 1, 0.25])


def test_ratios_are_capped_and_dead_channels_do_not_count() -> None:
    found = smoothing_factors(torch.tensor([1e-4, 1e4, 0.0]), Smoothing(cap=8))
    assert found.tolist() == pytest.approx([8, 1 / 8, 8])
    assert smoothing_factors(torch.zeros(3), Smoothing()).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_four_bit_inputs_gain_where_channels_differ(kind: str) -> None:
    """With one scale the small channels round to zero; with folded ratios the error is that of rounding."""
    x, spec = uneven(kind), LayerSpec(WeightSpec("int8"), INPUT4)
    layers = {name: twin(kind, x, s, spec) for name, s in {"plain": None, "folded": Smoothing()}.items()}
    set_state(layers, rounding="nearest", activations=True)
    # Weights that make all channels equally important, which is what channels of different range usually are.
    errors = {}
    for name, layer in layers.items():
        with torch.no_grad():
            layer.layer.weight.mul_((1 / UNEVEN).reshape(1, -1, *(1 for _ in layer.layer.weight.shape[2:])))
        for part in layer.operators():
            part.set_grid(weight_scales(part.weight, spec.weights))
        errors[name] = relative_error(layer(x), layer.layer(x))
    assert errors["folded"] < 0.35 * errors["plain"]
    assert errors["folded"] < 0.2


def test_percentiles_leave_out_what_is_rare() -> None:
    x = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(2))
    x[0, 0] = 1000.0
    settings = Smoothing(percentile=99.0)
    found = ranges_of(x, settings)
    exact = x.abs().quantile(0.99, 0)
    assert bool((found >= exact).all())
    assert bool((found <= exact * 1.05).all())
    assert ranges_of(x, Smoothing())[0] == 1000


def test_ranges_join_batches() -> None:
    x = uneven("conv")
    for settings in (Smoothing(), Smoothing(percentile=98.0)):
        seen = ChannelRanges(settings, images=True)
        for part in x.split(1):
            seen.update(part, torch.ones(1))
        assert torch.equal(seen.values(), ranges_of(x, settings))
    with pytest.raises(ValueError, match="no inputs"):
        ChannelRanges(Smoothing(), images=False).values()


def test_channels_of_images_and_tokens() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)

    def found(images: bool) -> list[float]:
        seen = ChannelRanges(Smoothing(), images=images)
        seen.update(x, torch.ones(1))
        return seen.values().tolist()

    assert found(images=True) == [11, 23]
    assert found(images=False) == [20, 21, 22, 23]  # of a linear layer, whatever the other axes are


def test_halves_of_a_split_layer_have_ranges_of_their_own() -> None:
    [whole] = one_layer(INT4, STATIC)
    divided = replace(whole, spec=replace(whole.spec, split=6, smooth=True))
    ranges = torch.cat([torch.full((6,), 100.0), torch.full((10,), 0.01)])
    found = factors_by_part([divided, whole], {"layer": ranges}, Smoothing(cap=4))
    assert {name: factors.tolist() for name, factors in found.items()} == {
        LayerPart("backbone", 0, 6).of("layer"): pytest.approx([1] * 6),
        LayerPart("skip", 6, 16).of("layer"): pytest.approx([1] * 10),
    }
