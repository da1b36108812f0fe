"""What every observer does: keep a statistic per noise band, and turn it into a clipping range."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from compress.formats import Format


class Range(NamedTuple):
    """Values kept by quantization; what lies outside is clipped."""

    low: float
    high: float


class StaticScale(NamedTuple):
    """Stored activation parameters: scale `[1]`, and zero point `[1]` (integral float) when asymmetric."""

    scale: Tensor
    zero_point: Tensor | None


class Observer(Protocol):
    """Sees a layer's inputs at known noise levels."""

    def update(self, x: Tensor, sigma: Tensor) -> None:
        """Take in activations `[b, …]` logged at noise levels `[b]`."""
        ...

    def range(self, fmt: Format, symmetric: bool) -> Range:
        """The clipping range over all noise bands."""
        ...


class NoiseBands:
    """Which statistic an activation belongs to: bands of log sigma, one per octave or `edges` of your own.

    Statistics are kept apart so that methods may use them apart (per-timestep scales); a static scale joins them.
    """

    def __init__(self, edges: tuple[float, ...] = (0.05, 0.15, 0.5, 1.5, 5.0, 15.0, 50.0)) -> None:
        self.edges = torch.tensor(edges, dtype=torch.float64)

    def split(self, x: Tensor, sigma: Tensor) -> list[tuple[int, Tensor]]:
        """(band, the rows of x in it) for every band present, lowest noise first.

        A layer that runs on other than one row per sample (tokens folded into the batch) repeats sigma evenly.
        """
        if len(x) % len(sigma):
            raise ValueError(f"{len(x)} rows cannot be shared out over {len(sigma)} noise levels")
        band = torch.bucketize(sigma.double().cpu(), self.edges).repeat_interleave(len(x) // len(sigma))
        return [(b, x[(band == b).to(x.device)]) for b in sorted(set(band.tolist()))]


def static_scale(kept: Range, fmt: Format, symmetric: bool) -> StaticScale:
    """Scale and zero point that map a clipping range onto a format.

    Symmetric: scale = max(|low|, |high|) / the format's largest value. Asymmetric (integers): the range, widened to
    hold zero, is divided into 2**bits - 1 steps.
    """
    if symmetric:
        limit = max(abs(kept.low), abs(kept.high)) or fmt.max_value
        return StaticScale(torch.tensor([limit / fmt.max_value], dtype=torch.float32), None)
    low, high = min(kept.low, 0.0), max(kept.high, 0.0)
    levels = 2**fmt.bits - 1
    scale = (high - low) / levels or 1.0
    zero = float(min(levels, max(0, round(-low / scale))))
    return StaticScale(torch.tensor([scale], dtype=torch.float32), torch.tensor([zero], dtype=torch.float32))
