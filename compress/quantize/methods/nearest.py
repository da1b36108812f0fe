"""Rounding to nearest: every weight to the closest code of its block's scale.

The baseline that every other method must beat. There is no paper to depart from; the min-max scale and the search for
the clipping with the least squared error are described by Nagel et al., "A White Paper on Neural Network Quantization"
(2021), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.formats import QTensor, WeightSpec, as_stored, quantize_weight, scale_values, weight_scales
from compress.quantize.job import Method, QuantizedLayer, QuantizedPart, QuantizeJob
from compress.quantize.ranges import RangeSearch, search_scales

MSE_FACTORS = tuple(1.0 - 0.02 * step for step in range(31))  # 1.00 … 0.40 of the full range
POWER_FACTORS = (
    1.0,
    2.0,
    0.5,
)  # for powers of two; MX scales let the extremes saturate, so the next one up may be better


class Nearest(Config):
    """Round every weight to the nearest code."""

    kind: Literal["nearest"] = "nearest"
    clip: Literal["minmax", "mse"] = Field(
        "minmax", description="Range of a block: its full range, or the one with the least squared rounding error."
    )
    ranges: RangeSearch | None = Field(
        None, description="The range search of learned methods instead of `clip`: where their rounding starts."
    )


def mse_scales(weight: Tensor, spec: WeightSpec) -> QTensor:
    """Nearest rounding with, per block, the scale of least squared error among shrunken full-range scales.

    The zero point of an asymmetric block and the global scale stay those of the full range.
    """
    full = weight_scales(weight, spec)
    whole = scale_values(full.scales)
    best = whole
    best_error = _block_error(weight, quantize_weight(weight, spec, *full))
    for factor in (POWER_FACTORS if spec.scale_dtype == "e8m0" else MSE_FACTORS)[1:]:
        scales = scale_values(as_stored(whole * factor, spec))
        scales = torch.where((scales > 0) & torch.isfinite(scales), scales, whole)  # small types end soon
        error = _block_error(weight, quantize_weight(weight, spec, scales, full.zero_points, full.global_scale))
        better = error < best_error
        best_error, best = torch.where(better, error, best_error), torch.where(better, scales, best)
    return quantize_weight(weight, spec, best, full.zero_points, full.global_scale)


def _block_error(weight: Tensor, quantized: QTensor) -> Tensor:
    """Squared rounding error summed over whatever shares a scale, in the scales' shape."""
    squared = (weight.float() - quantized.dequantize()).square().flatten(1)
    if quantized.spec.granularity == "tensor":
        return squared.sum().reshape(1, 1)
    block = quantized.spec.block_size(squared.shape[1])
    padded = torch.nn.functional.pad(squared, (0, -squared.shape[1] % block))
    return padded.reshape(len(padded), -1, block).sum(-1)


def _rounded(weight: Tensor, spec: WeightSpec, settings: Nearest) -> QTensor:
    if settings.ranges is not None:
        found = search_scales(weight, spec, settings.ranges)
        return quantize_weight(weight, spec, found.scales, found.zero_points)
    return mse_scales(weight, spec) if settings.clip == "mse" else quantize_weight(weight, spec)


def run(settings: Nearest, job: QuantizeJob) -> Iterator[QuantizedLayer]:
    """Quantize layer after layer."""
    for assignment in job.assignments:
        assert assignment.spec is not None
        name, spec = assignment.info.name, assignment.spec.weights
        weight = job.read(f"{name}.weight")
        parts = assignment.spec.parts(tuple(weight.shape))
        slices = (weight[:, part.start : part.stop].contiguous() for part in parts)
        yield QuantizedLayer(name, tuple(QuantizedPart(_rounded(w, spec, settings)) for w in slices))
        job.tick(name)


METHOD = Method(
    name="nearest",
    title="Round to nearest",
    citation="Nagel et al. 2021, A White Paper on Neural Network Quantization, arXiv 2106.08295, section 2",
    summary="Every weight to the closest code; min-max or least-squares clipping. The baseline.",
    settings=Nearest,
    run=run,
)
