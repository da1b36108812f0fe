"""What one unit of reconstruction receives and should give, for every calibration row; on disk above a memory cap.

Published code keeps all of it in memory, tens of gigabytes for a block of a latent U-Net (Q-Diffusion's issue 26 shows
one allocation of 300 GB). Here rows go to disk batch by batch, and mini-batches are read back row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from compress.calibration.row_sources import RecordRows, RowSource, TrajectoryRows
from compress.calibration.row_store import check_space
from compress.calibration.sampler import Denoise
from compress.calibration.unit_slots import Slot, make_slots
from compress.calibration.unit_tap import TENSOR, Tap, replace_leaves, same_template, tensors_of
from compress.errors import RunError, UnsupportedLayer

__all__ = ["Place", "RecordRows", "RowSource", "TrajectoryRows", "UnitBatch", "UnitInputs", "capture_unit"]


@dataclass(frozen=True)
class Place:
    """Where captured rows go: into memory if a unit's take at most `memory_cap` bytes, else to disk, in `folder`.

    `batch_size` rows run at a time, on `device`.
    """

    folder: Path
    memory_cap: int = 0
    device: str = "cpu"
    batch_size: int = 16


class UnitBatch(NamedTuple):
    """Arguments of a unit's forward for some rows, and the full-precision outputs that belong to them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: tuple[Tensor, ...]


class UnitInputs:
    """Captured inputs and outputs of a unit; close it, or use it as a context manager."""

    def __init__(self, template: Any, inputs: list[Slot], outputs: list[Slot], timesteps: Tensor, device: str) -> None:
        self.timesteps = timesteps  # [n] float32
        self._template, self._inputs, self._outputs, self._device = template, inputs, outputs, device

    def __len__(self) -> int:
        return len(self.timesteps)

    def batch(self, rows: Tensor) -> UnitBatch:
        """Arguments and targets of these rows (int64 `[b]`), in new memory on the unit's device."""
        tensors = iter([slot.read(rows).to(self._device) for slot in self._inputs])
        args, kwargs = replace_leaves(self._template, lambda leaf: next(tensors) if leaf is TENSOR else leaf)
        target = tuple(slot.read(rows).to(self._device) for slot in self._outputs if slot.store is not None)
        return UnitBatch(args, kwargs, target)

    def outputs(self, result: Any) -> tuple[Tensor, ...]:
        """Those tensors of what the unit returned that have targets, in the targets' order."""
        found = tensors_of(result)
        return tuple(tensor for tensor, slot in zip(found, self._outputs, strict=True) if slot.store is not None)

    @property
    def bytes(self) -> int:
        """Captured bytes, wherever they lie."""
        return len(self) * sum(slot.row_bytes for slot in (*self._inputs, *self._outputs))

    def close(self) -> None:
        """Let go of memory and files."""
        for slot in (*self._inputs, *self._outputs):
            if slot.store is not None:
                slot.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def capture_unit(
    model: nn.Module,
    name: str,
    rows: RowSource,
    place: Place,
    *,
    inputs: Denoise,
    targets: Denoise | None = None,
) -> UnitInputs:
    """Run the model over all rows and keep what the module `name` receives and what it should return.

    Tensors whose first extent grows with the batch are kept row by row; it may be a multiple of the batch (tokens
    folded into it). Whatever else the module receives is kept once and must be the same in every batch. Each forward
    ends as soon as the unit has been seen. A unit that runs several times in one forward is seen the first time only.

    Args:
        model: both runs must call this module's submodule `name`.
        inputs: runs the model whose unit receives the inputs, for the asymmetric scheme the quantized one.
        targets: runs the model whose unit gives the outputs, full precision; None takes inputs and outputs from the
            same forward.

    Raises:
        UnsupportedLayer: the forward never calls the unit, its arguments change from batch to batch in other ways, or
            it returns no tensor with a row for each sample.
        OutputError: the disk is full.
    """
    if len(rows) == 0:
        raise RunError("there are no calibration rows to run over", where=name)
    tap = Tap(model.get_submodule(name), name, place.device)
    template, slots = _plan(tap, rows, inputs, targets)
    row_bytes = sum(slot.row_bytes for side in slots for slot in side)
    in_memory = len(rows) * row_bytes <= place.memory_cap
    if not in_memory:
        check_space(place.folder, len(rows) * row_bytes)
    captured = UnitInputs(template, *slots, torch.empty(len(rows)), place.device)
    try:
        for slot in (*slots[0], *slots[1]):
            slot.open(len(rows), None if in_memory else place.folder)
        _fill(tap, captured, slots, rows, place.batch_size, (inputs, targets))
    except BaseException:
        captured.close()
        raise
    return captured


def _plan(
    tap: Tap, rows: RowSource, inputs: Denoise, targets: Denoise | None
) -> tuple[Any, tuple[list[Slot], list[Slot]]]:
    """The template of the unit's arguments, and a slot for every tensor it receives and returns.

    Two small forwards, on two rows and on one, tell which tensors have rows: an extent may equal a batch by chance.
    """
    two = next(iter(rows.batches(2)))
    sizes = (len(two.t), 1)
    parts = [two.part(0, size) for size in sizes]
    seen = [tap.see(inputs, part, outputs=targets is None) for part in parts]
    given = seen if targets is None else [tap.see(targets, part, inputs=False, outputs=True) for part in parts]
    slots = make_slots(seen[0].inputs, seen[1].inputs, sizes, tap.name)
    returned = make_slots(given[0].outputs, given[1].outputs, sizes, tap.name, floats_only=True)
    if not any(slot.per_sample for slot in returned):
        raise UnsupportedLayer("this unit returns no tensor with a row for each sample", where=tap.name)
    return seen[0].template, (slots, returned)


def _fill(
    tap: Tap,
    captured: UnitInputs,
    slots: tuple[list[Slot], list[Slot]],
    rows: RowSource,
    batch_size: int,
    runs: tuple[Denoise, Denoise | None],
) -> None:
    """Run over all rows and hand every tensor to its slot."""
    inputs, targets = runs
    first = 0
    for record in rows.batches(batch_size):
        batch = len(record.t)
        captured.timesteps[first : first + batch] = record.t
        first += batch
        seen = tap.see(inputs, record, outputs=targets is None)
        if not same_template(seen.template, captured._template):
            raise UnsupportedLayer("arguments of this unit differ between batches", where=tap.name)
        _take(slots[0], seen.inputs, batch)
        if targets is not None:
            seen = tap.see(targets, record, inputs=False, outputs=True)
        for slot, tensor in zip(slots[1], seen.outputs, strict=True):
            if slot.per_sample:
                slot.take(tensor, batch)


def _take(slots: list[Slot], tensors: list[Tensor], batch: int) -> None:
    for slot, tensor in zip(slots, tensors, strict=True):
        slot.take(tensor, batch)
