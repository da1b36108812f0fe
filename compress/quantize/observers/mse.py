"""The range whose rounding and clipping together cost the least squared error."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from compress.config import Config
from compress.formats import Format, get_format, quantize_dequantize
from compress.quantize.observers.base import NoiseBands, Range, static_scale
from compress.quantize.observers.histogram import Histogram
from compress.quantize.observers.percentile import HistogramObserver


class Mse(Config):
    """Search the clipping range with the least mean squared error, on the histogram of all values seen."""

    kind: Literal["mse"] = "mse"
    steps: int = Field(80, ge=2, description="Ranges tried, from the full one downwards.")
    smallest: float = Field(0.2, gt=0, lt=1, description="Smallest range tried, as a fraction of the full one.")


def quantization_error(histogram: Histogram, kept: Range, fmt: Format, symmetric: bool) -> float:
    """Mean squared error of quantizing the histogram's data with this clipping range."""
    parameters = static_scale(kept, fmt, symmetric)
    operator_format = fmt if symmetric else get_format(f"u{fmt.name}")
    values = histogram.centers().float()
    rounded = quantize_dequantize(values, operator_format, parameters.scale, parameters.zero_point)
    error = (values.double() - rounded.double()).square() * histogram.counts
    return float(error.sum() / histogram.counts.sum())


class MseObserver(HistogramObserver):
    """Range with the least squared error among shrunken copies of the full one."""

    def __init__(self, settings: Mse, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.settings = settings

    def range(self, fmt: Format, symmetric: bool) -> Range:
        histogram = self.joined()
        factors = torch.linspace(1.0, self.settings.smallest, self.settings.steps, dtype=torch.float64).tolist()
        tried = [Range(histogram.low * f, histogram.high * f) for f in factors]
        return min(tried, key=lambda kept: quantization_error(histogram, kept, fmt, symmetric))
