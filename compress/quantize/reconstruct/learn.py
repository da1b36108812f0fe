"""The two learning loops, for anything that can tell its error on given calibration rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compress.quantize.reconstruct.settings import RoundingSettings, StepSettings
from compress.quantize.rounding.adaround import GAMMA, ZETA, beta_at, rectified_sigmoid
from compress.quantize.simulate import SimulatedPart

SMALLEST_STEP = 1e-3
"""Scales stay above this share of what they were at first: a step of Adam must not make one zero or negative."""

Error = Callable[[Tensor], Tensor]
"""Mean loss of the calibration rows (int64 `[b]`) that it is given, with gradients."""


def fit_rounding(
    parts: Sequence[SimulatedPart],
    error: Error,
    count: int,
    settings: RoundingSettings,
    generator: torch.Generator,
    *,
    driven: Sequence[SimulatedPart] | None = None,
) -> None:
    """Learn V of parts whose rounding was started (AdaRound, Nagel et al. 2020, eq. 21); the layers must be `soft`.

    Adam with a constant rate. After the warm-up the gradient of `regularizer * sum(1 - |2 h(V) - 1| ** beta)` is
    added, with beta falling linearly.

    Args:
        count: rows in all, of which each step draws `batch_size` different ones.
        driven: the parts with that term; all of them by default.
    """
    offsets = [_offset(part) for part in parts]
    regularized = [_offset(part) for part in (parts if driven is None else driven)]
    optimizer = torch.optim.Adam(offsets, lr=settings.learning_rate, fused=True)
    for iteration in range(settings.iterations):
        optimizer.zero_grad(set_to_none=True)
        error(draw_rows(count, settings.batch_size, generator)).backward()  # type: ignore[no-untyped-call]
        beta = beta_at(
            iteration,
            settings.iterations,
            warmup=settings.warmup,
            start=settings.beta_start,
            end=settings.beta_end,
        )
        if beta is not None and settings.regularizer:
            for offset in regularized:
                add_regularizer_gradient(offset, beta, settings.regularizer)
        optimizer.step()


def fit_steps(
    scales: Sequence[nn.Parameter], error: Error, count: int, settings: StepSettings, generator: torch.Generator
) -> None:
    """Learn scales of inputs: Adam, its rate falling to 0 along a cosine (LSQ's gradients without its factor).

    Of scales per timestep, those get gradients whose rows were drawn.
    """
    smallest = [scale.detach() * SMALLEST_STEP for scale in scales]
    optimizer = torch.optim.Adam(scales, lr=settings.learning_rate, fused=True)
    for iteration in range(settings.iterations):
        optimizer.param_groups[0]["lr"] = cosine_rate(settings.learning_rate, iteration, settings.iterations)
        optimizer.zero_grad(set_to_none=True)
        error(draw_rows(count, settings.batch_size, generator)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for scale, bound in zip(scales, smallest, strict=True):
                scale.clamp_(min=bound)


def draw_rows(count: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """`batch_size` different rows of `count`, or all of them, int64."""
    return torch.randperm(count, generator=generator)[:batch_size]


def cosine_rate(rate: float, iteration: int, iterations: int) -> float:
    """The rate at an iteration, counted from 0: `rate` at first, towards 0 at the end."""
    return rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


@torch.no_grad()
def add_regularizer_gradient(offset: Tensor, beta: float, weight: float) -> None:
    """Add to V's gradient that of `weight * rounding_regularizer(V, beta)`, without building a graph for it.

    With u = 2 h(V) - 1 it is `-weight * beta * |u| ** (beta - 1) * sign(u) * 2 h'(V)`; where h is clipped it is 0.
    """
    sigmoid = offset.sigmoid()
    u = sigmoid.mul(2 * (ZETA - GAMMA)).add_(2 * GAMMA - 1)  # 2 h(V) - 1, not clipped
    size = u.abs()
    slope = (1 - sigmoid).mul_(sigmoid).mul_(-2 * weight * beta * (ZETA - GAMMA))
    slope.mul_(size.pow(beta - 1)).mul_(u.sign_()).masked_fill_(size >= 1, 0)
    if offset.grad is None:
        offset.grad = slope
    else:
        offset.grad.add_(slope)


@torch.no_grad()
def settled_share(parts: Sequence[SimulatedPart], tolerance: float = 1e-2) -> float:
    """Share of the weights whose h(V) is within `tolerance` of 0 or 1, so that hard rounding hardly moves them."""
    settled = whole = 0
    for part in parts:
        h = rectified_sigmoid(_offset(part))
        settled += int((torch.minimum(h, 1 - h) <= tolerance).sum())
        whole += h.numel()
    return settled / whole if whole else 1.0


def _offset(part: SimulatedPart) -> nn.Parameter:
    assert part.offset is not None, "start_rounding comes first"
    return part.offset
