"""Denoiser inputs to run over again and again: a logged trajectory, an even choice from one, or a single batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from compress.calibration.store import Record, Trajectory


class RowSource(Protocol):
    """Denoiser inputs that can be run over again and again, in the same order."""

    def __len__(self) -> int:
        """Rows in all; both guidance halves count."""
        ...

    def batches(self, size: int) -> Iterator[Record]:
        """All rows in batches of `size`; only the last may be smaller."""
        ...


class TrajectoryRows:
    """All inputs of a trajectory, or `count` of them drawn evenly over its noise levels, in the order of logging.

    A trajectory that holds no more than `count` is taken whole.
    """

    def __init__(self, trajectory: Trajectory, count: int | None = None, seed: int = 0) -> None:
        self.trajectory = trajectory
        whole = count is None or count >= len(trajectory)
        self.entries = torch.arange(len(trajectory)) if whole else trajectory.spread(count or 0, seed, "unit inputs")

    def __len__(self) -> int:
        return len(self.entries)

    def batches(self, size: int) -> Iterator[Record]:
        """All rows in batches of `size`; only the last may be smaller."""
        return self.trajectory.select(self.entries, size)


class RecordRows:
    """The rows of one batch that is in memory."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __len__(self) -> int:
        return len(self.record.t)

    def batches(self, size: int) -> Iterator[Record]:
        """All rows in batches of `size`; only the last may be smaller."""
        for first in range(0, len(self), size):
            yield self.record.part(first, first + size)
