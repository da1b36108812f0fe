"""Finished work, by the hash of everything that determines it.

A step's folder appears under its final name only when complete: it is built under `tmp/PID/`, flushed to disk, then
renamed. A process killed at any moment leaves at most rubbish under `tmp/`, which the next run removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from compress.config import canonical_json, content_hash
from compress.errors import explain_os_error, os_error_of
from compress.files import flush_tree, locked

_DONE = "step.json"
_DATA = "data"


class Step(NamedTuple):
    """A finished step: the folder its builder filled, the hash of its inputs, the builder's result, was it there."""

    folder: Path
    key: str
    result: dict[str, Any]
    cached: bool


def _alive(pid: str) -> bool:
    """Whether a process of this number runs; several runs may share one cache."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


class Cache:
    """Steps on disk below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp" / str(os.getpid())

    def prepare(self) -> None:
        """Create the folder, and remove what killed runs left behind."""
        try:
            self.tmp.parent.mkdir(parents=True, exist_ok=True)
            for folder in self.tmp.parent.iterdir():
                if folder == self.tmp or not _alive(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
            self.tmp.mkdir()
        except OSError as error:
            raise explain_os_error(error, self.root) from error

    def location(self, name: str, inputs: Any) -> tuple[Path, str]:
        """Final folder and full key of a step with these inputs."""
        key = content_hash(inputs)
        return self.root / f"{name}-{key[:20]}", key

    def step(self, name: str, inputs: Any, build: Callable[[Path], dict[str, Any] | None]) -> Step:
        """The finished step, built now if it is not there.

        `build` fills an empty folder and may return JSON data. `inputs` is anything with canonical JSON.

        Raises:
            OutputError: the disk is full or not writable; nothing half-written remains.
        """
        final, key = self.location(name, inputs)
        with self.lock(final.name):
            done = final / _DONE
            if done.is_file():
                return Step(final / _DATA, key, json.loads(done.read_text())["result"], True)
            return Step(final / _DATA, key, self._build(name, inputs, build), False)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold one name of the cache: a second run that wants it waits. The lock ends with the process."""
        return locked(self.root / "locks" / name)

    def _build(self, name: str, inputs: Any, build: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any]:
        """Build a step under `tmp/`, then move it to its place."""
        final, key = self.location(name, inputs)
        work = self.tmp / final.name
        shutil.rmtree(work, ignore_errors=True)
        try:
            (work / _DATA).mkdir(parents=True)
            result = build(work / _DATA) or {}
            record = {"name": name, "key": key, "inputs": json.loads(canonical_json(inputs)), "result": result}
            (work / _DONE).write_text(json.dumps(record, indent=1) + "\n")
            flush_tree(work)
            if final.exists():  # complete folders have their record; this one is damaged
                shutil.rmtree(final)
            os.rename(work, final)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            reason = os_error_of(error)
            if reason is None:
                raise
            raise explain_os_error(reason, final) from error
        return result
