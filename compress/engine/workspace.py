"""The output folder of a run: whose it is, who works in it, and how finished parts appear in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.engine.cache import Cache
from compress.errors import InputError, explain_os_error
from compress.files import flush_tree, write_text_atomically

LOCK_FILE = "recipe.lock.yaml"
LOG_FILE = "run.log"
WORK = ".work"
PARTS = ("checkpoint", "onnx", "report")


class Workspace:
    """One output folder."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder = folder
        self.work = folder / WORK
        self.cache = Cache(cache or self.work / "steps")

    def check(self, recipe_text: str, fresh: bool) -> None:
        """Whether this recipe may use the folder; writes nothing.

        Raises:
            InputError: the folder holds another recipe's output, or files that no run made.
        """
        if not self.folder.exists() or (fresh and (self.folder / LOCK_FILE).is_file()):
            return
        self._refuse_foreign(recipe_text, self.folder / LOCK_FILE)

    def claim(self, recipe_text: str, fresh: bool) -> bool:
        """Make the folder this recipe's; returns whether a run of it is continued. Call it inside `exclusive`.

        Raises:
            InputError: see `check`. OutputError: the folder cannot be written.
        """
        lock = self.folder / LOCK_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                self._clear()
            self._refuse_foreign(recipe_text, lock)
            continued = lock.is_file()
            self.work.mkdir(exist_ok=True)
            if not continued:
                write_text_atomically(lock, recipe_text)
            self.cache.prepare()
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        return continued

    def _refuse_foreign(self, recipe_text: str, lock: Path) -> None:
        if lock.is_file():
            if lock.read_text(encoding="utf-8") != recipe_text:
                raise InputError(
                    "the folder holds the output of another recipe",
                    where=str(self.folder),
                    hint=f"compare {LOCK_FILE}, choose another --output, or replace it with --fresh",
                )
            return
        # Without its lock file nothing but the beginnings of a run can be ours, not even a folder named checkpoint.
        ours = {WORK, LOG_FILE, f"{LOCK_FILE}.part"}
        foreign = sorted(path.name for path in self.folder.iterdir() if path.name not in ours)
        if foreign:
            raise InputError(
                f"the folder is not empty and no run made it (it holds {foreign[0]})",
                where=str(self.folder),
                hint="choose another --output",
            )

    def _clear(self) -> None:
        if not (self.folder / LOCK_FILE).is_file():
            return
        begun = [path for path in self.work.iterdir() if path.name != "lock"] if self.work.is_dir() else []
        # The recipe's lock file goes last: until then the folder is known to be ours.
        for path in (*begun, *(self.folder / name for name in (*PARTS, LOG_FILE, LOCK_FILE))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused. The lock goes with the process, however it ends.

        Raises:
            InputError: another process works here.
        """
        import fcntl

        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    "another process is running in this folder", where=str(self.folder), hint="wait for it to finish"
                ) from None
            yield

    def publish(self, part: str, key: str, build: Callable[[Path], None]) -> Path:
        """Let a part of the output appear whole under its name; an up-to-date one stays.

        `key` identifies the content; with the sizes of the files it is kept beside the work, not in the part, so a part
        from which something was deleted or cut off is built again.
        """
        final, stamp = self.folder / part, self.work / f"{part}.key"
        if stamp.is_file() and stamp.read_text() == _seal(key, final):
            return final
        partial, old = self.work / f"{part}.part", self.work / f"{part}.old"
        try:
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)
            partial.mkdir(parents=True)
            build(partial)
            flush_tree(partial)
            stamp.unlink(missing_ok=True)
            if final.exists():
                os.rename(final, old)
            os.rename(partial, final)
            write_text_atomically(stamp, _seal(key, final))
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise explain_os_error(error, final) from error
        return final


def _seal(key: str, folder: Path) -> str:
    """A key with the names and sizes of what lies in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return "\n".join([key, *(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)])
