"""The full range seen."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import NoiseBands, Range


class MinMax(Config):
    """Clip nothing: the range runs from the smallest to the largest value seen."""

    kind: Literal["minmax"] = "minmax"


class MinMaxObserver:
    """Running range, kept apart for each band of noise levels."""

    def __init__(self, settings: MinMax, bands: NoiseBands) -> None:
        self.bands = bands
        self.ranges: dict[int, Range] = {}

    def update(self, x: Tensor, sigma: Tensor) -> None:
        for band, part in self.bands.split(x, sigma):
            old = self.ranges.get(band, Range(float("inf"), float("-inf")))
            self.ranges[band] = Range(min(old.low, float(part.min())), max(old.high, float(part.max())))

    def range(self, fmt: Format, symmetric: bool) -> Range:
        return Range(min(r.low for r in self.ranges.values()), max(r.high for r in self.ranges.values()))
