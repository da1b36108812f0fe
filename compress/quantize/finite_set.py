"""Finite set calibration: a scale of its own for each of the few timesteps that the sampler visits.

Huang et al. 2024 (TFMQ-DM), section 4.3. The range of a timestep is the smallest and largest value that the layer's
input takes there; over logged samples it is averaged as in the released code, `m <- 0.95 m + 0.05 batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compress.calibration.capture import capture
from compress.calibration.sampler import denoise_with, stream_seed
from compress.calibration.trajectory import Trajectory
from compress.errors import RunError
from compress.formats import get_format
from compress.models.adapter import Adapter
from compress.models.conditioning import ConditioningGrid
from compress.quantize.observers import StaticScale, static_scale
from compress.quantize.observers.base import Range
from compress.quantize.simulate import SimulatedLayer, SimulatedPart
from compress.quantize.temporal import TemporalBlock

MOMENTUM = 0.95
BATCH = 16

Layers = Mapping[str, SimulatedLayer]
RangeOf = Callable[[Tensor], tuple[float, float]]
"""Low and high end of a timestep from its samples' smallest and largest values, `[samples, 2]`."""


def with_timestep_scales(layers: Layers) -> dict[str, SimulatedLayer]:
    """The layers that have input scales per timestep."""
    return {name: layer for name, layer in layers.items() if _timed(layer)}


@torch.no_grad()
def calibrate_block(block: TemporalBlock, layers: Layers, grid: ConditioningGrid, *, batch_size: int = 256) -> None:
    """Set the scales of the block's layers: the full range at each timestep over all classes, without any image.

    Layers compute in the state they are in; the rounding that will be stored should be on.
    """
    chosen = with_timestep_scales({name: layers[name] for name in block.layers if name in layers})
    extremes = Extremes(chosen)
    with capture(block.model, chosen, extremes.see):
        for chosen_rows in torch.split(torch.arange(len(grid)), batch_size):
            t, condition = block.rows(grid, chosen_rows)
            extremes.start(t)
            block.outputs(t, condition, share=False)
    extremes.set_scales(full_range)


@torch.no_grad()
def calibrate_layers(
    adapter: Adapter,
    model: nn.Module,
    layers: Layers,
    trajectory: Trajectory,
    *,
    seed: int,
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Set the scales of all the given layers that have one per timestep, from the whole trajectory.

    The samples of a timestep are shuffled before they are averaged in batches of 16, since the average forgets what
    came first. Layers compute in the state they are in.

    Args:
        advance: told how many denoiser inputs are done, batch by batch.

    Raises:
        RunError: the trajectory does not visit a timestep that scales are stored for.
    """
    chosen = with_timestep_scales(layers)
    if not chosen:
        return
    extremes, denoise = Extremes(chosen), denoise_with(adapter, model)
    device = next(model.parameters()).device
    with capture(model, chosen, extremes.see):
        for record in trajectory.batches(batch_size):
            batch = record.to(device)
            extremes.start(batch.t)
            denoise(batch.sample, batch.t, batch.condition)
            advance(len(batch.t))
    extremes.set_scales(partial(moving_range, seed=seed))


class Extremes:
    """Smallest and largest value of every sample's input, part by part: all that ranges per timestep need.

    Two numbers a sample and part are kept, so the model runs once over the data and averages come afterwards.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.found: dict[str, list[Tensor]] = {}
        self.t: list[Tensor] = []

    def start(self, t: Tensor) -> None:
        """The next batch begins, at timesteps `[samples]`."""
        self.t.append(t.float().cpu())

    def see(self, name: str, x: Tensor, _: Tensor) -> None:
        """Take in one layer's input for the whole batch."""
        layer = self.layers[name]
        images = isinstance(layer.layer, nn.Conv2d)
        for part in _timed(layer):
            taken = x.float()
            if part.part.name:  # else the whole input: a grouped convolution's weight does not tell its channels
                taken = taken.narrow(1 if images else -1, part.part.start, part.part.stop - part.part.start)
            if part.smooth is not None:
                taken = taken * part.smooth.reshape((-1, 1, 1) if images else (-1,))
            low, high = torch.aminmax(taken.reshape(len(self.t[-1]), -1), dim=1)
            found = self.found.setdefault(part.part.of(name), [])
            if len(found) == len(self.t):  # it runs once more in this forward, as the embedder of a DiT's first block
                earlier = found.pop()
                low, high = torch.minimum(low.cpu(), earlier[:, 0]), torch.maximum(high.cpu(), earlier[:, 1])
            found.append(torch.stack([low, high], dim=1).cpu())

    def set_scales(self, range_of: RangeOf) -> None:
        """Give every part its scales. Raises RunError when a timestep or a layer was not seen."""
        if not self.layers:
            return
        t = torch.cat(self.t)
        for name, layer in self.layers.items():
            for part in _timed(layer):
                assert part.inputs is not None
                key = part.part.of(name)
                if key not in self.found:
                    raise RunError("the layer never ran while input ranges were measured", where=name)
                part.inputs.set(_scales(torch.cat(self.found[key]), t, part, range_of))


def full_range(values: Tensor) -> tuple[float, float]:
    """From the smallest to the largest value of any sample; `values` is `[samples, 2]`."""
    return float(values[:, 0].min()), float(values[:, 1].max())


def moving_range(values: Tensor, seed: int, momentum: float = MOMENTUM, batch: int = BATCH) -> tuple[float, float]:
    """Exponential average over batches of shuffled samples of each batch's full range; the first batch begins it."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(stream_seed(seed, "finite set", 0)))
    low = high = 0.0
    for number, chosen in enumerate(torch.split(order, batch)):
        lowest, highest = full_range(values[chosen])
        keep = momentum if number else 0.0
        low, high = keep * low + (1 - keep) * lowest, keep * high + (1 - keep) * highest
    return low, high


def _timed(layer: SimulatedLayer) -> list[SimulatedPart]:
    """The parts whose input has a scale per timestep."""
    return [part for part in layer.operators() if part.inputs is not None and part.inputs.spec.timesteps]


def _scales(values: Tensor, t: Tensor, part: SimulatedPart, range_of: RangeOf) -> StaticScale:
    """Scales `[T]`, and zero points, of a part whose samples `[samples, 2]` were at timesteps `[samples]`."""
    assert part.inputs is not None
    spec = part.inputs.spec
    nearest = (t[:, None] - torch.tensor(spec.timesteps)).abs().argmin(1)
    scales = []
    for number, timestep in enumerate(spec.timesteps):
        samples = values[nearest == number]
        if not len(samples):
            raise RunError(f"the trajectory has no sample at t = {timestep:g}", hint="log it with the recipe's sampler")
        scales.append(static_scale(Range(*range_of(samples)), get_format(spec.format), spec.symmetric))
    zeros = [scale.zero_point for scale in scales if scale.zero_point is not None]
    return StaticScale(torch.cat([scale.scale for scale in scales]), torch.cat(zeros) if zeros else None)
