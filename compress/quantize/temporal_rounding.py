"""Temporal information aware reconstruction (TIAR): the rounding of the whole temporal block, learned without images.

Huang et al. 2024 (TFMQ-DM), section 4.2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.calibration.sampler import stream_seed
from compress.config import content_hash
from compress.models.conditioning import ConditioningGrid
from compress.quantize.reconstruct import (
    Finished,
    RoundingSettings,
    UnitReport,
    fit_rounding,
    mean_loss,
    reconstruction_loss,
    settled_share,
)
from compress.quantize.simulate import SimulatedLayer, SimulatedPart, set_state
from compress.quantize.temporal import TemporalBlock

MOST_VALUES = 1 << 24
"""So many outputs of the block are learned from at once and held in memory; of more, each step draws a batch."""

UNIT = "temporal information block"
"""Name in reports and in the stream of draws."""

Layers = Mapping[str, SimulatedLayer]


def learn_temporal_block(
    block: TemporalBlock,
    layers: Layers,
    grid: ConditioningGrid,
    settings: RoundingSettings,
    *,
    seed: int,
    work: Path,
    most_values: int = MOST_VALUES,
) -> UnitReport:
    """Learn the rounding of all the block's simulated layers together.

    Minimises `sum_i |e^_{t,i} - e_{t,i}| ** norm` over the branches i, summed over channels and averaged over all pairs
    of timestep and class, plus the rounding term over every weight of the block. The block's layers are left at hard
    rounding with inputs in floating point; other layers are not touched.

    Args:
        layers: the model's simulated layers, with their grids.
        work: folder for the finished decisions; what is there already is taken instead of learning.
        most_values: outputs of all branches together, over all pairs, up to which a step takes every pair; of more it
            draws `settings.batch_size` pairs.
    """
    inside = {name: layers[name] for name in block.layers if name in layers}
    learned = {name: layer for name, layer in inside.items() if name not in block.copies}
    parts = [part for _, part in _parts(learned)]
    finished, key = Finished(work), content_hash([UNIT, settings, grid.timesteps, grid.classes, sorted(learned), seed])
    tensors = finished.load("temporal", key)
    if not parts:
        report = UnitReport(UNIT, "rounding", 0.0, 0.0, 0.0, 1.0, True, 0.0)
    elif tensors is None:
        report = _learn(_Errors(block, inside, grid, settings, most_values), parts, settings, seed)
        codes = {name: part.codes() for name, part in _parts(learned)}
        numbers = torch.tensor([float(value) for value in report[2:]], dtype=torch.float64)
        finished.save("temporal", key, codes | {"report": numbers})
    else:
        for name, part in _parts(learned):
            part.finish_rounding(tensors[name].to(part.weight.device))
        nearest, last, soft, settled, kept, seconds = tensors["report"].tolist()
        report = UnitReport(UNIT, "rounding", nearest, last, soft, settled, bool(kept), seconds)
    _follow(block, inside)
    set_state(inside, rounding="hard", activations=False)
    return report


class _Errors:
    """The block's error on pairs of timestep and class, in whatever state its layers are.

    Attributes:
        layers: the simulated layers of the block; those that are copies are not run.
        batch_size: pairs of a step: all of them where what they should give fits into memory.
    """

    def __init__(
        self, block: TemporalBlock, layers: Layers, grid: ConditioningGrid, settings: RoundingSettings, most_values: int
    ) -> None:
        self.block, self.layers, self.grid, self.norm = block, layers, grid, settings.norm
        values = sum(output.shape[1] for output in self._exact(torch.zeros(1, dtype=torch.long)))
        whole = len(grid) * values <= most_values
        self.batch_size = len(grid) if whole else settings.batch_size
        self._held = self._exact(torch.arange(len(grid))) if whole else None

    def __call__(self, rows: Tensor) -> Tensor:
        """Mean loss of the pairs with these numbers, with gradients."""
        held = self._held
        targets = self._exact(rows) if held is None else [target[rows.to(target.device)] for target in held]
        outputs = self.block.outputs(*self.block.rows(self.grid, rows))
        return reconstruction_loss(outputs, targets, self.norm)

    def whole(self) -> float:
        """Mean loss of all pairs."""
        return mean_loss(self, len(self.grid), self.batch_size)

    @torch.no_grad()
    def _exact(self, rows: Tensor) -> list[Tensor]:
        """What full precision gives, `[rows, channels]` of each branch; the layers' state is restored."""
        states = {name: layer.rounding for name, layer in self.layers.items()}
        set_state(self.layers, rounding="off", activations=False)
        found = self.block.outputs(*self.block.rows(self.grid, rows))
        for name, state in states.items():
            self.layers[name].rounding = state
        return found


def _learn(errors: _Errors, parts: list[SimulatedPart], settings: RoundingSettings, seed: int) -> UnitReport:
    """Decide the rounding of `parts`."""
    started = time.perf_counter()
    settings = settings.model_copy(update={"batch_size": errors.batch_size})
    set_state(errors.layers, rounding="nearest", activations=False)
    nearest, nearest_codes = errors.whole(), [part.codes() for part in parts]
    for part in parts:
        part.start_rounding()
    set_state(errors.layers, rounding="soft")
    generator = torch.Generator().manual_seed(stream_seed(seed, UNIT, 0))
    fit_rounding(parts, errors, len(errors.grid), settings, generator)
    soft, settled = errors.whole(), settled_share(parts)
    for part in parts:
        part.finish_rounding()
    set_state(errors.layers, rounding="hard")
    last = errors.whole()
    kept = last <= nearest or not settings.keep_better
    if not kept:
        for part, codes in zip(parts, nearest_codes, strict=True):
            part.finish_rounding(codes)
    seconds = time.perf_counter() - started
    return UnitReport(UNIT, "rounding", nearest, last if kept else nearest, soft, settled, kept, seconds)


def _follow(block: TemporalBlock, layers: Layers) -> None:
    """Round every copy as the embedder that it is a copy of."""
    for name, leader in block.copies.items():
        if name in layers:
            for part, learned in zip(layers[name].operators(), layers[leader].operators(), strict=True):
                assert learned.scales is not None
                part.set_grid(learned.scales)
                part.finish_rounding(learned.codes())


def _parts(layers: Layers) -> Iterator[tuple[str, SimulatedPart]]:
    for name, layer in layers.items():
        for part in layer.operators():
            yield part.part.of(name), part
