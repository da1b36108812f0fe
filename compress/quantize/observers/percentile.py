"""A range that leaves out the rarest values, and the histograms it is read from."""

from __future__ import annotations

from functools import reduce
from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import NoiseBands, Range
from compress.quantize.observers.histogram import Histogram


class Percentile(Config):
    """Clip the rarest values at either end."""

    kind: Literal["percentile"] = "percentile"
    percentile: float = Field(99.99, gt=50, le=100, description="Share of values kept below the upper end, in percent.")


class HistogramObserver:
    """Histogram of a layer's input, kept apart for each band of noise levels."""

    def __init__(self, bands: NoiseBands) -> None:
        self.bands = bands
        self.histograms: dict[int, Histogram] = {}

    def update(self, x: Tensor, sigma: Tensor) -> None:
        for band, part in self.bands.split(x, sigma):
            self.histograms.setdefault(band, Histogram()).update(part)

    def joined(self) -> Histogram:
        """All bands together."""
        return reduce(Histogram.merge, (self.histograms[band] for band in sorted(self.histograms)))


class PercentileObserver(HistogramObserver):
    """Range between the two percentiles of everything seen."""

    def __init__(self, settings: Percentile, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.fraction = settings.percentile / 100

    def range(self, fmt: Format, symmetric: bool) -> Range:
        histogram = self.joined()
        if self.fraction == 1.0:
            return Range(histogram.low, histogram.high)
        return Range(histogram.quantile(1 - self.fraction), histogram.quantile(self.fraction))
