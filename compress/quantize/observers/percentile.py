"""A range that leaves out the rarest values: between percentiles of the recipe's choice, or the best of several."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import BandObserver, NoiseBands, Range
from compress.quantize.observers.error import least_error
from compress.quantize.observers.histogram import Histogram

Percent = Annotated[float, Field(gt=50, le=100)]


class Percentile(Config):
    """Clip the rarest values at either end."""

    kind: Literal["percentile"] = "percentile"
    percentile: Percent = Field(99.99, description="Share of values kept below the upper end, in percent.")


class BestPercentile(Config):
    """Clip at the percentile with the least mean squared error (Wang et al. 2025, QuEST, as in its released code)."""

    kind: Literal["best_percentile"] = "best_percentile"
    candidates: tuple[Percent, ...] = Field(
        (99.9, 99.99, 99.999),
        min_length=1,
        description="Percentiles tried; of equal errors the first wins.",
    )


class HistogramObserver(BandObserver[Histogram]):
    """Histogram of a layer's input, kept apart for each band of noise levels."""

    def update(self, x: Tensor, sigma: Tensor) -> None:
        for band, part in self.bands.split(x, sigma):
            self.by_band.setdefault(band, Histogram()).update(part)

    def joined(self, band: int | None = None) -> Histogram:
        """All bands together, or one of them."""
        return reduce(Histogram.merge, self.statistics(band))


class PercentileObserver(HistogramObserver):
    """Range between the two percentiles of everything seen."""

    def __init__(self, settings: Percentile, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.settings = settings

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        return between_percentiles(self.joined(band), self.settings.percentile).with_zero()


class BestPercentileObserver(HistogramObserver):
    """The one of several percentile ranges that costs the least squared error."""

    def __init__(self, settings: BestPercentile, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.settings = settings

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        histogram = self.joined(band)
        tried = [between_percentiles(histogram, percentile) for percentile in self.settings.candidates]
        return least_error(histogram, tried, fmt, symmetric, norm=2.0).with_zero()


def between_percentiles(histogram: Histogram, percentile: float) -> Range:
    """From `100 - percentile` to `percentile`, in percent of all values; 100 is the full range."""
    fraction = percentile / 100
    if fraction == 1.0:
        return Range(histogram.low, histogram.high)
    return Range(histogram.quantile(1 - fraction), histogram.quantile(fraction))
