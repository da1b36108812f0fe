"""Static activation scales: the trajectory runs through the full-precision model, observers watch the chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.calibration.capture import capture
from compress.calibration.sampler import denoise_with
from compress.calibration.trajectory import Record, Trajectory
from compress.formats import get_format
from compress.models.adapter import Adapter
from compress.quantize.clock import Clock
from compress.quantize.observers import NoiseBands, Observer, StaticScale, make_observer, order_matters, static_scale
from compress.quantize.rules import Assignment
from compress.quantize.spec import LayerPart


def static_assignments(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Those whose input has a static scale."""
    return [a for a in assignments if a.spec and a.spec.activations and a.spec.activations.mode == "static"]


class PartWatch:
    """Observers of what one part of a layer reads: one, or one for each timestep that has a scale of its own."""

    def __init__(self, assignment: Assignment, part: LayerPart, smooth: Tensor | None) -> None:
        assert assignment.spec is not None and assignment.spec.activations is not None
        self.part, self.smooth, self.spec = part, smooth, assignment.spec.activations
        self.axis = 1 if assignment.info.kind == "conv2d" else -1
        self.clock = Clock(self.spec.timesteps) if self.spec.timesteps else None
        count = max(1, len(self.spec.timesteps))
        self.observers: list[Observer] = [
            make_observer(
                assignment.activations.observer, NoiseBands(), get_format(self.spec.format), self.spec.symmetric
            )
            for _ in range(count)
        ]

    def see(self, x: Tensor, batch: Record) -> None:
        """Take in the input x of the whole layer, logged on this batch of denoiser inputs."""
        if self.part.name:  # else the whole input: a grouped convolution's weight does not tell its channels
            x = x.narrow(self.axis, self.part.start, self.part.stop - self.part.start)
        if self.smooth is not None:
            x = x * self.smooth.to(x.device).reshape((-1, 1, 1) if self.axis == 1 else (-1,))
        samples = x.reshape(len(batch.t), -1, *x.shape[1:])  # rows of a sample follow each other in the batch
        for observer, rows in self._shares(batch):
            observer.update(samples[rows].flatten(0, 1), batch.sigma[rows])

    def _shares(self, batch: Record) -> Iterator[tuple[Observer, Tensor | slice]]:
        """Each observer that this batch concerns, and the samples that it sees."""
        if self.clock is None:
            yield self.observers[0], slice(None)
            return
        self.clock.look(batch.t, len(batch.t))
        for index in sorted(set(self.clock.indices.tolist())):
            yield self.observers[index], (self.clock.indices == index).nonzero()[:, 0]

    def scale(self) -> StaticScale:
        """What the observers found, `[1]` or one for each timestep."""
        fmt, symmetric = get_format(self.spec.format), self.spec.symmetric
        found = [static_scale(observer.range(fmt, symmetric), fmt, symmetric) for observer in self.observers]
        zeros = [one.zero_point for one in found if one.zero_point is not None]
        return StaticScale(torch.cat([one.scale for one in found]), torch.cat(zeros) if zeros else None)


@torch.no_grad()
def static_scales(
    adapter: Adapter,
    model: nn.Module,
    trajectory: Trajectory,
    assignments: Sequence[Assignment],
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = 64,
    smooth: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, StaticScale]:
    """Scale (and zero point) of every statically quantized input, by the qualified name of the layer's part.

    Parts see their own channels only. With scales per timestep, each input is seen by the observer of the timestep that
    is nearest to its own, as the layer will choose it.

    Args:
        progress: called with (denoiser inputs done, in all).
        smooth: factors `[channels]` by the same names; the part's input is multiplied by them before it is seen.
        seed: mixes the inputs where a running average would otherwise remember the last noise levels only.
    """
    watches = _watches(assignments, smooth or {})
    if not watches:
        return {}
    passes = _passes(assignments)
    denoise, done = denoise_with(adapter, model), 0
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    batch: Record

    def see(name: str, x: Tensor, sigma: Tensor) -> None:
        for watch in watches[name].values():
            watch.see(x, batch)

    for mixed, names in passes:
        with capture(model, names, see):
            for logged in trajectory.batches(batch_size, shuffle=seed if mixed else None):
                batch = logged.to(device)
                denoise(batch.sample, batch.t, batch.condition)
                done += len(batch.t)
                if progress is not None:
                    progress(done // len(passes), len(trajectory))
    return {name: watch.scale() for parts in watches.values() for name, watch in parts.items()}


def _passes(assignments: Sequence[Assignment]) -> list[tuple[bool, list[str]]]:
    """Layers that run over the trajectory together, and whether its inputs are mixed.

    A running average over all timesteps must see them mixed, one for each timestep batches of a single one: the range
    of a batch grows with it. Other observers do not mind, so there are two passes only where both kinds occur.
    """
    static = static_assignments(assignments)
    order = [a for a in static if order_matters(a.activations.observer)]
    shared = {a.info.name for a in order if a.spec and a.spec.activations and not a.spec.activations.timesteps}
    alone = {a.info.name for a in order} - shared
    if not (shared and alone):
        return [(bool(shared), [a.info.name for a in static])]
    passes = [(True, [a.info.name for a in static if a.info.name in shared])]
    return [*passes, (False, [a.info.name for a in static if a.info.name not in shared])]


def _watches(assignments: Sequence[Assignment], smooth: Mapping[str, Tensor]) -> dict[str, dict[str, PartWatch]]:
    """By layer, then by the qualified name of the part."""
    watches: dict[str, dict[str, PartWatch]] = {}
    for a in static_assignments(assignments):
        assert a.spec is not None
        parts = a.spec.parts(a.info.weight_shape)
        names = {part.of(a.info.name): part for part in parts}
        watches[a.info.name] = {name: PartWatch(a, part, smooth.get(name)) for name, part in names.items()}
    return watches
