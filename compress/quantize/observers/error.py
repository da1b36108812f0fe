"""What clipping and rounding cost together, told from a histogram."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.formats import Format, get_format, quantize_dequantize
from compress.quantize.observers.base import Range, static_scale
from compress.quantize.observers.histogram import Histogram


def quantization_errors(
    histogram: Histogram, ranges: Sequence[Range], fmt: Format, symmetric: bool, norm: float
) -> Tensor:
    """Mean `|x - x^|**norm` of quantizing a histogram's data with each clipping range, float64 `[ranges]`.

    Every value counts as the middle of its bin, x^ is what the operators compute with the stored scale.
    """
    parameters = [static_scale(kept, fmt, symmetric) for kept in ranges]
    scale = torch.stack([p.scale for p in parameters])
    zero_points = [p.zero_point for p in parameters if p.zero_point is not None]
    filled = histogram.counts > 0
    values, counts = histogram.centers()[filled].float(), histogram.counts[filled]
    operator_format = fmt if symmetric else get_format(f"u{fmt.name}")
    rounded = quantize_dequantize(values, operator_format, scale, torch.stack(zero_points) if zero_points else None)
    error = (values.double() - rounded.double()).abs_().pow_(norm)
    return (error * counts).sum(-1) / counts.sum()


def least_error(histogram: Histogram, ranges: Sequence[Range], fmt: Format, symmetric: bool, norm: float) -> Range:
    """The clipping range with the least error, the first of equals."""
    return ranges[int(quantization_errors(histogram, ranges, fmt, symmetric, norm).argmin())]


def shrunken(full: Range, smallest: float, steps: int) -> list[Range]:
    """Copies of a range, both ends times the same factor: from 1 down to `smallest` in `steps` even steps."""
    factors = torch.linspace(1.0, smallest, steps, dtype=torch.float64).tolist()
    return [Range(full.low * factor, full.high * factor) for factor in factors]
