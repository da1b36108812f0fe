"""The exception tree: each message is one sentence that says what, where and what to do.

Exit codes (ARCHITECTURE section 7): 0 done, 1 a gate was missed, 2 the recipe or the command line is wrong,
3 it failed while running, 4 the memory budget would be or was exceeded.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import ClassVar


class CompressError(Exception):
    """Base of every error raised on purpose; `str(error)` is what the user reads.

    Args:
        message: what went wrong, one clause, no final stop.
        where: the place: `recipe.yaml:12`, a layer name, a file.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message, self.where, self.hint = message, where, hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text


class InputError(CompressError):
    """The command line, or a file it names, is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe is wrong: unknown key, wrong type, impossible order, a rule that matches nothing.

    Args:
        path: keys and list indices of the wrong place within the part at hand, so that whoever knows the file can turn
            them into a line.
    """

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, path: tuple[str | int, ...] = ()
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.path = path


class ModelError(CompressError):
    """A model folder cannot be read: missing file, truncated safetensors, unknown class."""

    exit_code = 2


class CheckpointError(ModelError):
    """A compressed checkpoint is not what its manifest says: missing or unexpected tensor, newer schema."""


class FormatError(CompressError):
    """A tensor does not fit the number format asked for."""

    exit_code = 2


class UnsupportedLayer(CompressError):
    """A layer that a stage cannot treat."""

    exit_code = 2


class RunError(CompressError):
    """A stage failed while running."""


class OutputError(RunError):
    """The output cannot be written: disk full, no permission."""


def os_error_of(error: BaseException) -> OSError | None:
    """The I/O error that an exception is, or that its text tells of: safetensors wraps them as `… (os error 28)`."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def explain_os_error(error: OSError, where: Path) -> OutputError:
    """The sentence for an I/O error while writing below `where`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next((folder for folder in (where, *where.absolute().parents) if folder.exists()), Path())
        text = f"the disk is full ({shutil.disk_usage(there).free / 1e6:.0f} MB free)"
        # What the system says tells a full disk from an exceeded quota.
        hint = f"free some space; the same command continues; the system says: {error.strerror}"
        return OutputError(text, where=str(where), hint=hint)
    return OutputError(f"cannot write: {error.strerror or error}", where=str(where))


class ExportError(RunError):
    """The ONNX export failed, or the file disagrees with the checkpoint."""


class MemoryBudgetError(CompressError):
    """The work would exceed, or exceeded, the memory budget."""

    exit_code = 4
