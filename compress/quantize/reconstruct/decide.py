"""Learn, measure, and keep what is better: rounding and input scales of layers that can tell their error."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from compress.errors import RunError
from compress.quantize.reconstruct.learn import Error, fit_rounding, fit_steps, settled_share
from compress.quantize.reconstruct.losses import mean_loss
from compress.quantize.reconstruct.report import UnitReport
from compress.quantize.reconstruct.settings import RoundingSettings, StepSettings
from compress.quantize.simulate import SimulatedLayer, SimulatedPart, set_state


def decide_rounding(
    name: str,
    layers: Sequence[SimulatedLayer],
    error: Error,
    count: int,
    settings: RoundingSettings,
    generator: torch.Generator,
    *,
    driven: Sequence[SimulatedPart] | None = None,
) -> UnitReport:
    """Learn the rounding of these layers together, and keep it unless rounding to nearest has the smaller error.

    The layers, whose grids are set, are `hard` afterwards, and V is let go.

    Args:
        name: of what they make up, for the report.
        error: mean loss of rows (int64 `[b]`, from 0 to count - 1) in whatever state the layers are, with gradients.
        driven: see `fit_rounding`.

    Raises:
        RunError: the error is not finite.
    """
    started = time.perf_counter()
    parts = [part for layer in layers for part in layer.operators()]
    set_state(layers, rounding="nearest")
    nearest = _finite(mean_loss(error, count, settings.batch_size), name)
    nearest_codes = [part.codes() for part in parts]
    for part in parts:
        part.start_rounding()
    set_state(layers, rounding="soft")
    fit_rounding(parts, error, count, settings, generator, driven=driven)
    soft, settled = mean_loss(error, count, settings.batch_size), settled_share(parts)
    for part in parts:
        part.finish_rounding()
    set_state(layers, rounding="hard")
    last = mean_loss(error, count, settings.batch_size)
    kept = last <= nearest or not settings.keep_better
    if not kept:
        for part, codes in zip(parts, nearest_codes, strict=True):
            part.finish_rounding(codes)
    seconds = time.perf_counter() - started
    return UnitReport(name, "rounding", nearest, last if kept else nearest, soft, settled, kept, seconds)


def decide_steps(
    name: str,
    scales: Sequence[nn.Parameter],
    error: Error,
    count: int,
    settings: StepSettings,
    generator: torch.Generator,
) -> UnitReport:
    """Learn these input scales together, and keep them unless the ones before have the smaller error.

    Args and errors as for `decide_rounding`.
    """
    started = time.perf_counter()
    before = [scale.detach().clone() for scale in scales]
    first = _finite(mean_loss(error, count, settings.batch_size), name)
    fit_steps(scales, error, count, settings, generator)
    last = mean_loss(error, count, settings.batch_size)
    kept = last <= first or not settings.keep_better
    if not kept:
        for scale, old in zip(scales, before, strict=True):
            scale.data.copy_(old)
    last = last if kept else first
    return UnitReport(name, "steps", first, last, last, 1.0, kept, time.perf_counter() - started)


def _finite(loss: float, name: str) -> float:
    if not math.isfinite(loss):
        hint = "keep its layers, or check the weights"
        raise RunError("this unit's outputs are not finite when it is quantized", where=name, hint=hint)
    return loss
