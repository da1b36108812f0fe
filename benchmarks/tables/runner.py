"""Measures a table, part by part in several processes; whatever was measured before is read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from benchmarks.tables import measures
from benchmarks.tables.bench import Bench
from benchmarks.tables.table import Cell, Table
from compress.errors import CompressError
from compress.evaluate.protocol import Protocol
from compress.report.model import Metric

Part = Literal["full precision", "ranking", "headline", "seed"]


class Task(NamedTuple):
    """One piece of work: a part of a cell, or of full precision (`cell` is None) in a section."""

    part: Part
    section: str
    cell: Cell | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        if self.cell is not None:
            return f"{self.cell.name} ({self.part})"
        return f"{self.section}/full precision" + (f", seed {self.seed}" if self.part == "seed" else "")


class Done(NamedTuple):
    """What a task found; `failure` says why it found nothing."""

    metrics: list[Metric]
    failure: str = ""


@dataclass(frozen=True)
class Options:
    """How a table is measured.

    Attributes:
        jobs: processes, each with `threads` threads.
        only: globs over cell names; an empty tuple is all of them.
        headlines: also measure headline rows, and full precision at the seeds they are judged by.
    """

    cache: Path
    jobs: int = 2
    threads: int = 1
    only: tuple[str, ...] = ()
    headlines: bool = True
    protocol: Protocol = field(default_factory=Protocol)


def tasks(table: Table, options: Options) -> list[Task]:
    """The work in the order it is best done: what ranks methods first, then what decorates the headline rows."""
    cells = [c for c in table.cells if not options.only or any(fnmatch(c.name, glob) for glob in options.only)]
    sections = list(dict.fromkeys(cell.section for cell in cells))
    found = [Task("full precision", section) for section in sections]
    found += [Task("ranking", cell.section, cell) for cell in cells]
    if options.headlines:
        chosen = [cell for cell in cells if cell.headline]
        found += [Task("headline", cell.section, cell) for cell in chosen]
        for section in dict.fromkeys(cell.section for cell in chosen):
            found += [Task("seed", section, seed=seed) for seed in range(options.protocol.seeds)]
    return found


def carry_out(task: Task, table: Table, options: Options) -> Done:
    """Do one task in this process. A model that cannot be measured is a finding, not the end of the table."""
    torch.set_num_threads(options.threads)
    bench = Bench(table.sections[task.section], options.protocol, options.cache)
    try:
        return Done(_WORK[task.part](bench, task))
    except CompressError as error:
        return Done([], f"{type(error).__name__}: {error}")


def _ranking(bench: Bench, task: Task) -> list[Metric]:
    assert task.cell is not None
    return measures.ranking(bench, task.cell)


def _headline(bench: Bench, task: Task) -> list[Metric]:
    assert task.cell is not None
    return measures.headline(bench, task.cell)


_WORK: dict[Part, Callable[[Bench, Task], list[Metric]]] = {
    "full precision": lambda bench, task: measures.full_precision(bench),
    "ranking": _ranking,
    "headline": _headline,
    "seed": lambda bench, task: measures.seed_headline(bench, task.seed),
}


def run_table(table: Table, options: Options, say: Callable[[str], None]) -> Iterator[tuple[Task, Done]]:
    """Every task with what it found, as they finish.

    Full precision comes first in each section, so that several cells do not wait for it at once.
    """
    work = tasks(table, options)
    first = [task for task in work if task.part == "full precision"]
    rest = [task for task in work if task.part != "full precision"]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for group in (first, rest):
            yield from _finished(pool, group, table, options, say)


def _finished(
    pool: ProcessPoolExecutor, work: Iterable[Task], table: Table, options: Options, say: Callable[[str], None]
) -> Iterator[tuple[Task, Done]]:
    start = time.monotonic()
    waiting: dict[Future[Done], Task] = {pool.submit(carry_out, task, table, options): task for task in work}
    total = len(waiting)
    while waiting:
        ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in ready:
            task = waiting.pop(future)
            done = future.result()
            note = f": {done.failure}" if done.failure else ""
            say(f"[{total - len(waiting)}/{total}] {task.name} {time.monotonic() - start:.0f} s{note}")
            yield task, done
