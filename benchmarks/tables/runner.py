"""Measures a table, part by part in several processes; whatever was measured before is read back."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from benchmarks.tables import measures
from benchmarks.tables.bench import Bench
from benchmarks.tables.measures import Found
from benchmarks.tables.table import Cell, Table
from compress.errors import CompressError
from compress.evaluate.protocol import Protocol

Part = Literal["floors", "ranking", "headline", "seed"]


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
        return f"{self.section}/full precision ({self.part}{f' {self.seed}' if self.part == 'seed' else ''})"


class Done(NamedTuple):
    """What a task found; `failure` says why it found nothing."""

    found: Found | None
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


Work = Callable[[Task, Table, Options], Done]


def tasks(table: Table, options: Options) -> list[Task]:
    """The work in the order it is best done: what ranks methods first, then what decorates the headline rows.

    Cells of a higher priority wait, if the table says so for the headline rows too.
    """
    cells = [c for c in table.cells if not options.only or any(fnmatch(c.name, glob) for glob in options.only)]
    floors = [Task("floors", section) for section in dict.fromkeys(cell.section for cell in cells)]
    rankings = sorted((Task("ranking", cell.section, cell) for cell in cells), key=_priority)
    headlines: list[Task] = []
    if options.headlines:
        chosen = [cell for cell in cells if cell.headline]
        headlines += [Task("headline", cell.section, cell) for cell in chosen]
        for section in dict.fromkeys(cell.section for cell in chosen):
            headlines += [Task("seed", section, seed=seed) for seed in range(options.protocol.seeds)]
    before = [task for task in rankings if _priority(task) <= table.headlines_after]
    return [*floors, *before, *headlines, *rankings[len(before) :]]


def _priority(task: Task) -> int:
    return 0 if task.cell is None else task.cell.priority


def carry_out(task: Task, table: Table, options: Options) -> Done:
    """Do one task in this process. A model that cannot be measured is a finding, not the end of the table."""
    torch.set_num_threads(options.threads)
    bench = Bench(table.sections[task.section], options.protocol, options.cache)
    try:
        return Done(_measure(bench, task))
    except Exception as error:
        if not isinstance(error, CompressError):
            traceback.print_exc()  # one of ours explains itself
        return Done(None, f"{type(error).__name__}: {error}")


def _measure(bench: Bench, task: Task) -> Found:
    match task:
        case Task("ranking", _, Cell() as cell):
            return measures.ranking(bench, cell)
        case Task("headline", _, Cell() as cell):
            return measures.headline(bench, cell)
        case Task("seed"):
            return measures.seed_headline(bench, task.seed)
        case _:
            return measures.floors(bench)


def run_table(
    table: Table, options: Options, say: Callable[[str], None], work: Work = carry_out
) -> Generator[tuple[Task, Done], None, None]:
    """Every task with what it found, as they finish.

    A worker that is killed (out of memory, say) takes the pool with it: the unfinished tasks then run one at a time in
    fresh processes, and one that kills its process again has failed.
    """
    left, jobs, start = tasks(table, options), options.jobs, time.monotonic()
    total, done_count = len(left), 0
    while left:
        finished = []
        for task, done in _attempt(left, table, options, jobs, work):
            finished.append(task)
            done_count += 1
            note = f": {done.failure}" if done.failure else ""
            say(f"[{done_count}/{total}] {task.name} {time.monotonic() - start:.0f} s{note}")
            yield task, done
        left = [task for task in left if task not in finished]
        if left and jobs == 1:
            culprit, left = left[0], left[1:]
            done_count += 1
            say(f"[{done_count}/{total}] {culprit.name}: its process was killed")
            yield culprit, Done(None, "its process was killed, perhaps for want of memory")
        elif left:
            say(f"a worker process was killed; {len(left)} tasks go on one at a time")
            jobs = 1


def _attempt(
    work_list: Sequence[Task], table: Table, options: Options, jobs: int, work: Work
) -> Iterator[tuple[Task, Done]]:
    """The tasks that a pool of their own finishes, which are not all if it breaks."""
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        futures: dict[Future[Done], Task] = {}
        with suppress(BrokenProcessPool):  # tasks that cannot be handed in stay unfinished
            futures.update((pool.submit(work, task, table, options), task) for task in work_list)
        for future in as_completed(futures):
            if not isinstance(future.exception(), BrokenProcessPool):
                yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
