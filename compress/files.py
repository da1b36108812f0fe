"""Files that are whole or not there: atomic writes, flushed folders, locks and hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from compress.errors import explain_os_error, os_error_of

PARTIAL_SUFFIX = ".part"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Run `write` on a temporary file beside `path`, force it to the disk, and rename it. Raises OutputError."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        write(partial)
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise explain_os_error(os_error_of(error) or OSError(str(error)), path) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step. Raises OutputError."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Force every file of a folder to disk, so that a rename cannot overtake the data."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made if need be; a second holder waits. The lock ends with the process. Raises OutputError."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise explain_os_error(error, path.parent) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
