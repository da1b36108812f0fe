"""What every observer does: keep a statistic per noise band, and turn it into a clipping range."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from compress.errors import RunError
from compress.formats import Format

Statistic = TypeVar("Statistic")


class Range(NamedTuple):
    """Values kept by quantization; what lies outside is clipped."""

    low: float
    high: float

    def with_zero(self) -> Range:
        """The range widened to hold zero, which every code has a value for."""
        return Range(min(self.low, 0.0), max(self.high, 0.0))


class StaticScale(NamedTuple):
    """Stored activation parameters: scale `[1]`, and zero point `[1]` (integral float) when asymmetric."""

    scale: Tensor
    zero_point: Tensor | None


class Observer(Protocol):
    """Sees a layer's inputs at known noise levels."""

    def update(self, x: Tensor, sigma: Tensor) -> None:
        """Take in activations `[b, …]` logged at noise levels `[b]`. Raises RunError when they are not finite."""
        ...

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        """The clipping range, which holds 0, over all noise bands or in one. Raises RunError when nothing was seen."""
        ...

    def ranges_by_band(self, fmt: Format, symmetric: bool) -> dict[int, Range]:
        """The clipping range of every noise band that was seen, lowest noise first."""
        ...


class NoiseBands:
    """Which statistic an activation belongs to: bands of log sigma, one per octave or `edges` of your own.

    Statistics are kept apart so that methods may use them apart (per-timestep scales); a static scale joins them.
    Band i holds edges[i-1] < sigma <= edges[i].
    """

    def __init__(self, edges: tuple[float, ...] = (0.05, 0.15, 0.5, 1.5, 5.0, 15.0, 50.0)) -> None:
        self.edges = torch.tensor(edges, dtype=torch.float64)

    @classmethod
    def of_levels(cls, sigmas: Sequence[float]) -> NoiseBands:
        """One band for each of these noise levels, ascending: band i belongs to the i-th smallest different level.

        Levels between two of them go to the nearer one by log sigma. 0 and infinity (pure noise) are levels, too.
        """
        return cls(tuple(_middle(low, high) for low, high in pairwise(sorted(set(sigmas)))))

    def split(self, x: Tensor, sigma: Tensor) -> list[tuple[int, Tensor]]:
        """(band, the rows of x in it) for every band present, lowest noise first.

        A layer that runs on other than one row per sample (tokens folded into the batch) repeats sigma evenly.
        """
        if len(x) % len(sigma):
            raise ValueError(f"{len(x)} rows cannot be shared out over {len(sigma)} noise levels")
        band = torch.bucketize(sigma.double().cpu(), self.edges).repeat_interleave(len(x) // len(sigma))
        return [(b, x[(band == b).to(x.device)]) for b in sorted(set(band.tolist()))]


class BandObserver(ABC, Generic[Statistic]):
    """An observer that keeps one statistic for each band of noise levels."""

    def __init__(self, bands: NoiseBands) -> None:
        self.bands = bands
        self.by_band: dict[int, Statistic] = {}

    @abstractmethod
    def update(self, x: Tensor, sigma: Tensor) -> None:
        """See `Observer`."""

    @abstractmethod
    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        """See `Observer`."""

    def ranges_by_band(self, fmt: Format, symmetric: bool) -> dict[int, Range]:
        """See `Observer`."""
        return {band: self.range(fmt, symmetric, band) for band in sorted(self.by_band)}

    def statistics(self, band: int | None) -> list[Statistic]:
        """The statistic of one band, or those of all, lowest noise first. Raises RunError when nothing was seen."""
        seen = sorted(self.by_band) if band is None else [band] if band in self.by_band else []
        if not seen:
            place = "" if band is None else f" in noise band {band}"
            raise RunError(f"no activation was seen{place}", hint="the layer did not run on the calibration trajectory")
        return [self.by_band[b] for b in seen]


def extremes(x: Tensor) -> Range:
    """Smallest and largest value of a tensor. Raises RunError when they are not finite."""
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RunError("a layer's input has values that are not finite", hint="check the weights, or use float32")
    return Range(low, high)


def static_scale(kept: Range, fmt: Format, symmetric: bool) -> StaticScale:
    """Scale and zero point that map a clipping range onto a format.

    Symmetric: scale = max(|low|, |high|) / the format's largest value. Asymmetric (integers): the range, widened to
    hold zero, is divided into 2**bits - 1 steps.
    """
    if symmetric:
        limit = max(abs(kept.low), abs(kept.high)) or fmt.max_value
        return StaticScale(torch.tensor([limit / fmt.max_value], dtype=torch.float32), None)
    low, high = kept.with_zero()
    levels = 2**fmt.bits - 1
    scale = (high - low) / levels or 1.0
    zero = float(min(levels, max(0, round(-low / scale))))
    return StaticScale(torch.tensor([scale], dtype=torch.float32), torch.tensor([zero], dtype=torch.float32))


def _middle(low: float, high: float) -> float:
    """Between two noise levels, geometrically; something between where one is 0 or infinite."""
    if low == 0.0:
        return 1.0 if math.isinf(high) else high / 2
    return low * 2 if math.isinf(high) else math.sqrt(low * high)
