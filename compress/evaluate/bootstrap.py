"""Seeded percentile bootstrap (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.finite import require_finite

REPLICATES = 1000
_CHUNK = 2_000_000  # drawn indices held at a time


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval and the standard deviation of the values it is the mean of."""

    mean: float
    low: float
    high: float
    std: float

    def spread(self) -> dict[str, float]:
        """The interval as a Metric's `spread`."""
        return {"ci95_low": self.low, "ci95_high": self.high}


def resamples(n: int, replicates: int, seed: int) -> Iterator[Tensor]:
    """Index tensors `[rows, n]`, drawn with replacement, `replicates` rows in all; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _CHUNK // max(1, n))
    for start in range(0, replicates, rows):
        yield torch.randint(n, (min(rows, replicates - start), n), generator=generator)


def mean_ci95(values: Tensor, seed: int, *, groups: Tensor | None = None, replicates: int = REPLICATES) -> Interval:
    """Mean of values `[n]` with the 2.5 % and 97.5 % quantiles of its bootstrap distribution.

    Args:
        groups: `[n]` integers; values of one group (the steps of one trajectory) are resampled together, since they
            are not independent.

    Raises:
        InputError: there are no values, or not as many groups.
        RunError: a value is NaN or infinite.
    """
    if values.numel() == 0:
        raise InputError("a mean of no values was asked for", hint="evaluate at least one sample")
    if groups is not None and groups.numel() != values.numel():
        raise InputError(f"{values.numel()} values came with {groups.numel()} group numbers")
    values = values.detach().flatten().double().cpu()
    mean = require_finite(float(values.mean()), "a mean of measured values")
    std = float(values.std()) if len(values) > 1 else 0.0
    totals, counts = values, torch.ones_like(values)
    if groups is not None:
        _, index = torch.unique(groups.flatten().cpu(), return_inverse=True)
        size = int(index.max()) + 1
        totals = torch.zeros(size, dtype=values.dtype).index_add_(0, index, values)
        counts = torch.bincount(index, minlength=size).double()
    means = [totals[pick].sum(1) / counts[pick].sum(1) for pick in resamples(len(totals), replicates, seed)]
    low, high = percentiles(torch.cat(means))
    return Interval(mean, low, high, std)


def paired_difference_ci95(a: Tensor, b: Tensor, seed: int, *, replicates: int = REPLICATES) -> Interval:
    """Mean of a - b over pairs `[n]`, resampling pairs: what they share (noise, label) cancels.

    Raises:
        InputError: the two differ in length, or are empty.
    """
    if a.shape != b.shape:
        raise InputError(f"paired values differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    return mean_ci95(a.double() - b.double(), seed, replicates=replicates)


def percentiles(values: Tensor) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of values `[n]`."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
