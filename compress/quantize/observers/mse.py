"""The range whose rounding and clipping together cost the least error."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import NoiseBands, Range
from compress.quantize.observers.error import least_error, shrunken
from compress.quantize.observers.percentile import HistogramObserver


class Mse(Config):
    """Search the clipping range with the least mean error, on the histogram of all values seen.

    Both ends shrink together. `norm: 2.4` scores as Q-Diffusion and PTQ4DM do.
    """

    kind: Literal["mse"] = "mse"
    steps: int = Field(80, ge=2, description="Ranges tried, from the full one downwards.")
    smallest: float = Field(0.2, gt=0, lt=1, description="Smallest range tried, as a fraction of the full one.")
    norm: float = Field(2.0, gt=0, le=10, description="Power of the error whose mean is least: 2 is the squared error.")


class MseObserver(HistogramObserver):
    """Range with the least error among shrunken copies of the full one."""

    def __init__(self, settings: Mse, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.settings = settings

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        histogram = self.joined(band)
        full = Range(histogram.low, histogram.high).with_zero()
        tried = shrunken(full, self.settings.smallest, self.settings.steps)
        return least_error(histogram, tried, fmt, symmetric, self.settings.norm)
