"""A histogram over an unknown range: bins merge in pairs when the data outgrow it, so nothing is stored but counts."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.quantize.observers.base import extremes

BINS = 4096  # even, so that merging pairs keeps every edge
CHUNK = 1 << 22  # values counted at once: inputs of convolutions in large U-Nets take gigabytes in float64


class Histogram:
    """Counts of values in `BINS` equal bins over `[-limit, limit]`, `limit` a power of two."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 2.0**-20
        self.low, self.high = float("inf"), float("-inf")

    def update(self, values: Tensor) -> None:
        """Count every value of a tensor of any shape. Raises RunError when they are not finite."""
        flat = values.detach().flatten().cpu().float()
        low, high = extremes(flat)
        self.low, self.high = min(self.low, low), max(self.high, high)
        while self.limit < max(abs(low), abs(high)):
            self._double()
        # A product with a power of two is exact, so a value's bin does not depend on the limit of the moment. Three
        # times as fast as torch.histc, which must work in float64 for that.
        bins = (flat * (BINS / 2 / self.limit)).floor_().clamp_(-BINS // 2, BINS // 2 - 1).to(torch.int32)
        self.counts += torch.bincount(bins + BINS // 2, minlength=BINS)

    def _double(self) -> None:
        merged = self.counts.view(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
        self.limit *= 2

    def centers(self) -> Tensor:
        """Middle of each bin, float64 `[BINS]`."""
        return ((torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * 2 - 1) * self.limit

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both data sets together; neither is changed."""
        result = Histogram()
        result.low, result.high = min(self.low, other.low), max(self.high, other.high)
        for part in (self, other):
            copy = Histogram()
            copy.counts, copy.limit = part.counts.clone(), part.limit
            while copy.limit < max(self.limit, other.limit):
                copy._double()
            result.counts, result.limit = result.counts + copy.counts, copy.limit
        return result

    def quantile(self, fraction: float) -> float:
        """The value below which this fraction of the data lies, by the middle of its bin, within [low, high]."""
        cumulative = self.counts.cumsum(0)
        index = int(torch.searchsorted(cumulative, fraction * float(cumulative[-1])))
        return min(self.high, max(self.low, float(self.centers()[min(index, BINS - 1)])))
