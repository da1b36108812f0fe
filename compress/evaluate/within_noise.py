"""When a difference from full precision is no more than noise: the project's one definition (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from compress.errors import InputError
from compress.evaluate.finite import require_finite

SEEDS = 5
"""Seeds that full precision is measured at, for its own spread."""


class NoiseVerdict(NamedTuple):
    """A paired difference from full precision, its 95 % interval, and two standard deviations of full precision."""

    difference: float
    low: float
    high: float
    limit: float

    @property
    def within(self) -> bool:
        """The interval holds zero, and the difference is no larger than the limit."""
        return self.low <= 0.0 <= self.high and abs(self.difference) <= self.limit


def within_noise(difference: float, ci95: tuple[float, float], full_precision: Sequence[float]) -> NoiseVerdict:
    """Judge a difference by two scales: what the pairs resolve, and what another seed would change.

    It is strict on purpose. A difference that the pairs resolve is not noise, however small; one that they do not
    resolve must still be no larger than what full precision does to itself. It suits metrics that have a value for
    full precision alone and may fall to either side of it (class accuracy, Fréchet distance), not distances from full
    precision (noise error, PSNR), which any compression moves to one side.

    Args:
        difference: compressed minus full precision on the same inputs.
        ci95: its paired bootstrap interval (`paired_difference_ci95`, or the spread of a paired metric).
        full_precision: values of the full-precision model at `SEEDS` different seeds.

    Raises:
        InputError: fewer seeds, or an interval upside down. RunError: a value is NaN or infinite.
    """
    if len(full_precision) < SEEDS:
        raise InputError(f"full precision was measured at {len(full_precision)} seeds, its spread needs {SEEDS}")
    low, high = ci95
    if low > high:
        raise InputError(f"the interval {low:g} to {high:g} is upside down")
    for value in (difference, low, high, *full_precision):
        require_finite(value, "a difference from full precision")
    deviation = float(torch.tensor(list(full_precision), dtype=torch.float64).std())
    return NoiseVerdict(difference, low, high, 2 * deviation)
