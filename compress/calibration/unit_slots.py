"""Where each tensor goes that a unit receives or returns."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from compress.calibration.row_store import FileRows, MemoryRows, RowStore
from compress.errors import UnsupportedLayer


class Slot:
    """One tensor that the unit receives or returns: `per_sample` rows for each sample, or (0) the same every time."""

    def __init__(self, example: Tensor, per_sample: int, where: str) -> None:
        self.example, self.per_sample, self.where = example, per_sample, where
        self.shape = tuple(example.shape[1:])
        if per_sample > 1:
            self.shape = (per_sample, *self.shape)
        self.store: RowStore | None = None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.example.dtype.itemsize if self.per_sample else 0

    def open(self, count: int, folder: Path | None) -> None:
        """Make room for the rows of `count` samples."""
        if self.per_sample:
            dtype = self.example.dtype
            self.store = MemoryRows(count, self.shape, dtype) if folder is None else FileRows(folder, self.shape, dtype)
            self.example = self.example[:0].clone()

    def take(self, tensor: Tensor, batch: int) -> None:
        """Keep the rows of the next `batch` samples. Raises UnsupportedLayer when they do not fit the first ones."""
        if self.store is not None:
            if tensor.shape != (batch * self.per_sample, *self.example.shape[1:]) or tensor.dtype != self.example.dtype:
                raise self._changes("its shape or type")
            self.store.append(tensor.reshape(batch, *self.shape))
        elif tensor.shape != self.example.shape or not torch.equal(tensor, self.example):
            raise self._changes("it has no row for each sample, and its values")

    def read(self, samples: Tensor) -> Tensor:
        if self.store is None:
            return self.example
        rows = self.store.read(samples)
        return rows.flatten(0, 1) if self.per_sample > 1 else rows

    def _changes(self, what: str) -> UnsupportedLayer:
        return UnsupportedLayer(
            f"a tensor that this unit receives differs between batches: {what}",
            where=self.where,
            hint="quantize its layers with method `nearest`",
        )


def make_slots(
    many: list[Tensor], one: list[Tensor], sizes: tuple[int, int], where: str, *, floats_only: bool = False
) -> list[Slot]:
    """A slot for each tensor of a forward on `sizes[0]` samples, told by another one on `sizes[1]` (1).

    With `floats_only`, whole numbers have no rows. Raises UnsupportedLayer when the forwards disagree.
    """
    if len(many) != len(one):
        raise UnsupportedLayer("the number of tensors that this unit receives depends on the batch", where=where)
    per_sample = [_rows_per_sample(a, b, sizes) for a, b in zip(many, one, strict=True)]
    if floats_only:
        per_sample = [count if a.is_floating_point() else 0 for a, count in zip(many, per_sample, strict=True)]
    return [Slot(a, count, where) for a, count in zip(many, per_sample, strict=True)]


def _rows_per_sample(many: Tensor, one: Tensor, sizes: tuple[int, int]) -> int:
    """How many rows of a tensor belong to one sample; 0 when its shape does not depend on the batch."""
    if many.dim() == 0 or many.shape[1:] != one.shape[1:]:
        return 0
    grows = sizes[0] == 1 or len(many) > len(one)  # a single row in all: everything may count as its own
    return len(one) if grows and len(many) == sizes[0] * len(one) else 0
