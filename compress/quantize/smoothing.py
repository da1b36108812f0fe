"""Ranges of single input channels folded into the weights, so that one scale per tensor serves them all.

A static scale per input channel cannot leave the sum of an integer product. Its ratio to a common scale can: with
factors r_c the layer computes `y = Q(x * r) @ Q(W / r)^T`, equal to `x @ W^T` before rounding, and channels that reach
a_c fill the common range when `r_c = a / a_c`.

Full strength gives QuEST's scale per channel at 4-bit activations (Wang et al. 2025, QuEST, arXiv 2402.03666) in the
form of RepQ-ViT's scale reparametrization (Li et al. 2023, arXiv 2212.08254, section 3.2), without its folding of zero
points. SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, eq. 4) balances against the weights' own ranges as well; here
they take whatever the activations give, and `alpha` says how much of it that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.quantize.rules import Assignment
from compress.quantize.spec import LayerPart

_STEPS = 16  # bins of the histogram in one octave: a percentile is up to 4 % too large
_LOWEST = -24.0  # log2 of the smallest magnitude told apart
_BINS = _STEPS * 48


class Smoothing(Config):
    """How much of the difference between input channels moves into the weights."""

    alpha: float = Field(
        1.0, ge=0, le=1, description="Strength: 0 leaves channels as they are, 1 gives all of them the same range."
    )
    cap: float = Field(
        32.0, ge=1, description="Largest factor by which a channel is scaled, up or down, against the typical one."
    )
    percentile: float = Field(
        100.0, gt=50, le=100, description="Share of a channel's values that its range holds, in percent; 100: all."
    )


class ChannelRanges:
    """Magnitude that the inputs of one layer reach, channel by channel.

    Channels are axis 1 of `images`, which convolutions read, and the last axis of anything else. Percentiles are read
    from a histogram of magnitudes in steps of 2^(1/16), rounded up.
    """

    def __init__(self, settings: Smoothing, *, images: bool) -> None:
        self.fraction, self.images = settings.percentile / 100, images
        self.largest: Tensor | None = None  # [c]
        self.counts: Tensor | None = None  # [c, _BINS]

    def update(self, x: Tensor, sigma: Tensor) -> None:
        """Take in inputs `[b, c, h, w]` or `[b, ..., c]`; the noise level does not matter, the weights are shared."""
        magnitudes = x.detach().movedim(1 if self.images else -1, 0).flatten(1).abs().float()  # c values
        largest = magnitudes.amax(1).cpu()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if self.fraction < 1:
            bins = ((magnitudes.log2() - _LOWEST) * _STEPS).floor().clamp(0, _BINS - 1).long()
            offsets = torch.arange(len(bins), device=bins.device)[:, None] * _BINS
            counts = (bins + offsets).flatten().bincount(minlength=len(bins) * _BINS).reshape(-1, _BINS).cpu()
            self.counts = counts if self.counts is None else self.counts + counts

    def values(self) -> Tensor:
        """Range of every channel, float32 `[c]`."""
        if self.largest is None:
            raise ValueError("no inputs were seen")
        if self.counts is None:
            return self.largest
        reached = self.counts.cumsum(1) >= self.fraction * self.counts.sum(1, keepdim=True)
        first = reached.float().argmax(1)  # of equal ones the first
        return torch.minimum(torch.exp2((first + 1) / _STEPS + _LOWEST), self.largest)


def smoothing_factors(ranges: Tensor, settings: Smoothing) -> Tensor:
    """Factors `[c]` that multiply the input channels, `(a / a_c)^alpha`; a is the geometric mean of the ranges.

    A ratio beyond `cap` counts as `cap`; so does that of a channel that is always zero, whose weights then leave the
    range to the others. The geometric mean keeps the product of all factors near 1, so neither side grows as a whole.
    """
    used = ranges > 0
    if not bool(used.any()):
        return torch.ones_like(ranges)
    typical = ranges[used].double().log().mean().exp()
    ratios = (typical / ranges.double()).clamp(1 / settings.cap, settings.cap)
    return (ratios**settings.alpha).float()


def parts_of(assignment: Assignment) -> Sequence[LayerPart]:
    """The operators that a quantized layer consists of."""
    assert assignment.spec is not None
    return assignment.spec.parts(assignment.info.weight_shape)


def factors_by_part(
    assignments: Sequence[Assignment], ranges: Mapping[str, Tensor], settings: Smoothing
) -> dict[str, Tensor]:
    """Factors of every smoothed operator, by its qualified name, from the ranges of whole layers' inputs by layer name.

    The halves of a split layer have scales of their own, so each half has its own typical range.
    """
    found = {}
    for a in assignments:
        if a.spec is None or not a.spec.smooth:
            continue
        for part in parts_of(a):
            kept = ranges[a.info.name][part.start : part.stop]
            found[part.of(a.info.name)] = smoothing_factors(kept, settings)
    return found
