"""Progress for people: a tqdm bar on a terminal, plain lines otherwise, and everything in run.log."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_LINE_EVERY = 20.0  # seconds between plain progress lines of one task


class ConsoleProgress:
    """Writes to `stream`: standard error, so that `--json` output stays clean."""

    def __init__(self, log: Path | None = None, stream: IO[str] | None = None, quiet: bool = False) -> None:
        self.log, self.stream, self.quiet = log, stream or sys.stderr, quiet
        self.terminal = self.stream.isatty()
        self.begin = time.monotonic()
        self.bar: Any = None
        self.title, self.total, self.done, self.last = "", 0, 0, 0.0

    def start(self, title: str, total: int) -> None:
        """A task of `total` units begins; the previous one ends."""
        self.finish()
        self.title, self.total, self.done, self.last = title, total, 0, time.monotonic()
        self._write_log(f"{title} ({total})")
        if self.quiet:
            return
        if self.terminal:
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=title, file=self.stream, leave=False, dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        """`count` more units of the task are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif not self.quiet and time.monotonic() - self.last >= _LINE_EVERY:
            self.last = time.monotonic()
            self._line(f"{self.title}: {self.done} of {self.total}")

    def reach(self, done: int, total: int) -> None:
        """`done` units of the task are done by now."""
        self.advance(done - self.done)

    def note(self, text: str) -> None:
        """A line for the reader and the log."""
        self.finish()
        self._write_log(text)
        if not self.quiet:
            self._line(text)

    def finish(self) -> None:
        """Remove the bar of a task that ended."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _line(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:6.1f} s] {text}", file=self.stream, flush=True)

    def _write_log(self, text: str) -> None:
        if self.log is None:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        with suppress(OSError), self.log.open("a", encoding="utf-8") as file:  # a full disk must not end a run here
            file.write(f"{stamp}Z {text}\n")
