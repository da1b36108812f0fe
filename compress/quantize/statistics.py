"""Static activation scales: the trajectory runs through the full-precision model, observers watch the chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from compress.calibration.capture import run_over
from compress.calibration.trajectory import Trajectory
from compress.formats import get_format
from compress.models.adapter import Adapter
from compress.quantize.observers import NoiseBands, StaticScale, make_observer, static_scale
from compress.quantize.rules import Assignment


def static_assignments(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Those whose input has a static scale."""
    return [a for a in assignments if a.spec and a.spec.activations and a.spec.activations.mode == "static"]


def static_scales(
    adapter: Adapter,
    model: nn.Module,
    trajectory: Trajectory,
    assignments: Sequence[Assignment],
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = 64,
) -> dict[str, StaticScale]:
    """Scale (and zero point) of every statically quantized input, by layer name."""
    chosen = static_assignments(assignments)
    if not chosen:
        return {}
    observers = {a.info.name: make_observer(a.activations.observer, NoiseBands()) for a in chosen}
    updates = {name: observer.update for name, observer in observers.items()}
    run_over(adapter, model, trajectory, updates, batch_size, progress)
    scales = {}
    for a in chosen:
        fmt, symmetric = get_format(a.activations.format), a.activations.symmetric
        scales[a.info.name] = static_scale(observers[a.info.name].range(fmt, symmetric), fmt, symmetric)
    return scales
