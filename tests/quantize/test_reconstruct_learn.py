"""The learning loops by themselves: AdaRound's objective, its end, and the steps' bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reconstruct_toys import SPEC
from torch import Tensor, nn

from compress.formats import WeightSpec, weight_scales
from compress.quantize.reconstruct import (
    RoundingSettings,
    StepSettings,
    fit_rounding,
    fit_steps,
    mean_loss,
    reconstruction_loss,
    settled_share,
)
from compress.quantize.reconstruct.learn import SMALLEST_STEP, add_regularizer_gradient, cosine_rate, draw_rows
from compress.quantize.rounding.adaround import rectified_sigmoid, rounding_regularizer
from compress.quantize.simulate import SimulatedLayer

COUNT = 96


def split_layer(fmt: str = "int3") -> SimulatedLayer:
    """A linear layer on two halves, the second of which has much smaller weights and is correlated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(24, 10)
    layer.weight.data[:, 12:] /= 20
    twin = SimulatedLayer("layer", layer.requires_grad_(False), replace(SPEC, weights=WeightSpec(fmt), split=12))
    for part in twin.operators():
        part.set_grid(weight_scales(part.weight, part.spec.weights))
        part.start_rounding()
    twin.rounding = "soft"
    return twin


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    x[:, 12:] *= 20
    return x / 5


def error_of(twin: SimulatedLayer, x: Tensor):
    target = twin.layer(x)
    return lambda rows: reconstruction_loss((twin(x[rows]),), (target[rows],), 2.0)


def learn(twin: SimulatedLayer, settings: RoundingSettings, seed: int = 0, **options) -> None:
    draws = torch.Generator().manual_seed(seed)
    fit_rounding(twin.operators(), error_of(twin, data()), COUNT, settings, draws, **options)


SETTINGS = RoundingSettings(iterations=800, batch_size=32, learning_rate=3e-2, regularizer=0.1)


def test_rounding_settles_in_both_halves_and_beats_nearest() -> None:
    twin = split_layer()
    error = error_of(twin, data())
    twin.rounding = "nearest"
    nearest = mean_loss(error, COUNT, 32)
    twin.rounding = "soft"
    learn(twin, SETTINGS)
    for part in twin.operators():
        assert settled_share([part]) >= 0.99
    soft = mean_loss(error, COUNT, 32)
    twin.rounding = "hard"
    hard = mean_loss(error, COUNT, 32)
    assert hard < nearest * 0.7
    assert abs(hard - soft) < hard / 20  # the last rounding costs next to nothing


def test_what_is_not_driven_does_not_settle() -> None:
    """The quirk of the released code: V of the skip half has no push to 0 or 1."""
    twin = split_layer()
    backbone, skip = twin.operators()
    learn(twin, SETTINGS, driven=[backbone])
    assert settled_share([backbone]) >= 0.99
    assert settled_share([skip]) < 0.7


def test_rounding_goes_to_a_neighbour_of_the_weight() -> None:
    twin = split_layer()
    learn(twin, SETTINGS)
    for part in twin.operators():
        assert part.scales is not None
        ratio = part.rows / part.scales.values()
        codes = part.codes().float() - 4  # symmetric int3: the zero point is 4
        inside = (ratio > -4) & (ratio < 3)
        assert inside.float().mean() > 0.9
        up = (codes - ratio.floor())[inside]
        assert set(up.unique().tolist()) == {0.0, 1.0}
        hard = part.effective_weight("hard").flatten(1)
        assert bool(((hard - part.rows).abs() < part.scales.values() * (1 + 1e-5))[inside].all())


def test_before_the_first_step_hard_rounding_is_nearest() -> None:
    twin = split_layer()
    nearest = [part.codes() for part in split_layer_untouched().operators()]
    for part, codes in zip(twin.operators(), nearest, strict=True):
        assert torch.equal(part.codes(), codes)


def split_layer_untouched() -> SimulatedLayer:
    twin = split_layer()
    for part in twin.operators():
        part.offset = None
        part.set_grid(weight_scales(part.weight, part.spec.weights))
    return twin


def test_the_warm_up_has_no_regularizer() -> None:
    one, other = split_layer(), split_layer()
    learn(one, SETTINGS.model_copy(update={"iterations": 30, "warmup": 1.0}))
    learn(other, SETTINGS.model_copy(update={"iterations": 30, "regularizer": 0.0}))
    for a, b in zip(one.operators(), other.operators(), strict=True):
        assert torch.equal(a.offset, b.offset)


def test_equal_seeds_learn_equally() -> None:
    few = SETTINGS.model_copy(update={"iterations": 40})
    twins = [split_layer() for _ in range(3)]
    for twin, seed in zip(twins, (5, 5, 6), strict=True):
        learn(twin, few, seed)
    one, same, other = (twin.operators()[0].offset for twin in twins)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_the_regularizers_gradient_is_that_of_autograd(beta: float) -> None:
    offset = (torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    assert 0 < float((rectified_sigmoid(offset) % 1 == 0).float().mean()) < 1  # clipped ones too
    (expected,) = torch.autograd.grad(0.01 * rounding_regularizer(offset, beta), offset)
    add_regularizer_gradient(offset, beta, 0.01)
    assert torch.allclose(offset.grad, expected, rtol=1e-4, atol=1e-8)
    add_regularizer_gradient(offset, beta, 0.01)
    assert torch.allclose(offset.grad, 2 * expected, rtol=1e-4, atol=1e-8)


def test_steps_stay_positive_whatever_the_rate() -> None:
    scale = nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))
    kinds = torch.arange(COUNT) % 2

    def error(rows: Tensor) -> Tensor:
        return scale[kinds[rows]].sum()  # always wants smaller scales, and knows nothing of the third

    settings = StepSettings(iterations=50, learning_rate=10.0)
    fit_steps([scale], error, COUNT, settings, torch.Generator().manual_seed(0))
    assert torch.allclose(scale[:2], torch.tensor(0.5 * SMALLEST_STEP))
    assert float(scale.detach()[2]) == 0.5  # no row of its own, no step


def test_the_rate_falls_along_a_cosine() -> None:
    rates = [cosine_rate(2.0, iteration, 10) for iteration in range(10)]
    assert rates[0] == 2.0 and rates[5] == pytest.approx(1.0) and 0 < rates[9] < 0.1
    assert rates == sorted(rates, reverse=True)


def test_mini_batches_have_different_rows() -> None:
    draws = torch.Generator().manual_seed(0)
    rows = draw_rows(40, 32, draws)
    assert len(set(rows.tolist())) == 32
    assert sorted(draw_rows(5, 32, draws).tolist()) == [0, 1, 2, 3, 4]


def test_losses_sum_over_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 4, 3, 5, 6, generator=generator)
    tokens = torch.randn(2, 4, 7, 3, generator=generator)
    vectors = torch.randn(2, 4, 3, generator=generator)
    for norm in (2.0, 2.4):

        def expected(pair: Tensor, axis: int, norm: float = norm) -> Tensor:
            return (pair[0] - pair[1]).abs().pow(norm).sum(axis).mean()

        def loss(pair: Tensor, mode, norm: float = norm) -> Tensor:
            return reconstruction_loss((pair[0],), (pair[1],), norm, mode)

        for pair, axes in ((images, (1, 1)), (tokens, (2, 1)), (vectors, (1, 1))):
            assert torch.allclose(loss(pair, "paper"), expected(pair, axes[0]))
            assert torch.allclose(loss(pair, "compat"), expected(pair, axes[1]))
        both = reconstruction_loss((images[0], tokens[0]), (images[1], tokens[1]), norm)
        assert torch.allclose(both, loss(images, "paper") + loss(tokens, "paper"))


def test_the_mean_loss_counts_every_row_once() -> None:
    values = torch.arange(10.0)
    assert mean_loss(lambda rows: values[rows].mean(), 10, 4) == pytest.approx(4.5)
