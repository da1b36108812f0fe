"""The full range seen."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import BandObserver, NoiseBands, Range, extremes


class MinMax(Config):
    """Clip nothing: the range runs from the smallest to the largest value seen."""

    kind: Literal["minmax"] = "minmax"


class MinMaxObserver(BandObserver[Range]):
    """Running range, kept apart for each band of noise levels."""

    def __init__(self, settings: MinMax, bands: NoiseBands) -> None:
        super().__init__(bands)

    def update(self, x: Tensor, sigma: Tensor) -> None:
        for band, part in self.bands.split(x, sigma):
            seen = extremes(part)
            self.by_band[band] = union([self.by_band.get(band, seen), seen])

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        return union(self.statistics(band)).with_zero()


def union(ranges: list[Range]) -> Range:
    """The smallest range that holds all of them."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))
