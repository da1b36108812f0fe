"""Rows of captured tensors: in memory, or in a nameless file that vanishes with the process."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compress.errors import OutputError, RunError, explain_os_error


class RowStore(Protocol):
    """Tensors of one shape and type for n samples, written in order once, then read at random."""

    def append(self, rows: Tensor) -> None:
        """Add the next samples, `[b, *shape]`. Raises OutputError."""
        ...

    def read(self, samples: Tensor) -> Tensor:
        """These samples, `[len(samples), *shape]`, in new memory. Raises RunError."""
        ...

    def close(self) -> None:
        """Let go of memory or file."""
        ...


class MemoryRows:
    """Rows in one block of memory."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.data, self.filled = torch.empty(count, *shape, dtype=dtype), 0

    def append(self, rows: Tensor) -> None:
        """Add the next samples."""
        self.data[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def read(self, samples: Tensor) -> Tensor:
        """A copy of these samples."""
        return self.data.index_select(0, samples)

    def close(self) -> None:
        """Let go of the memory."""
        self.data = torch.empty(0)


class FileRows:
    """Rows in a file that has no name, so that even a killed process leaves nothing behind.

    Every read fills new memory of just the rows asked for. Nothing is mapped: what the system keeps of the file in its
    page cache is not the process's and can be dropped at any time.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.row_bytes = math.prod(shape) * dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise explain_os_error(error, folder) from error

    def append(self, rows: Tensor) -> None:
        """Write the next samples at the end. Raises OutputError, on a full disk too."""
        left = _as_bytes(rows).numpy().data
        try:
            while len(left):
                left = left[self.file.write(left) :]  # an unbuffered write may take only a part
        except OSError as error:
            raise explain_os_error(error, self.folder) from error

    def read(self, samples: Tensor) -> Tensor:
        """Read these samples. Raises RunError when the file is shorter than it was."""
        taken = torch.empty(len(samples), self.row_bytes, dtype=torch.uint8)
        for sample, row in zip(samples.tolist(), taken.numpy(), strict=True):
            self.file.seek(sample * self.row_bytes)
            if self.file.readinto(row) != self.row_bytes:
                raise RunError("captured activations cannot be read back", where=str(self.folder))
        return taken.view(self.dtype).reshape(len(samples), *self.shape)

    def close(self) -> None:
        """Close the file, which removes it."""
        self.file.close()


def check_space(folder: Path, needed: int) -> None:
    """Refuse early what the disk cannot hold: `needed` bytes below `folder`. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{needed / 1e6:.0f} MB of activations do not fit on the disk ({free / 1e6:.0f} MB free)",
            where=str(folder),
            hint="free some space, or learn from fewer denoiser inputs; the same command continues",
        )


def _as_bytes(rows: Tensor) -> Tensor:
    """The same values as uint8 `[bytes]`, for types that numpy does not know."""
    return rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
