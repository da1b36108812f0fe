"""Makes the artefacts, opens each in a process of its own, and asks them in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.denoiser.artefacts import FROM_TORCH, SOURCE, Artefact, Recipe, make
from benchmarks.denoiser.contestants import OURS, STOCK, Contestant
from benchmarks.denoiser.model import TOKENS, adapter_of, inputs, macs
from compress.errors import CompressError, RunError
from compress.evaluate.latency import Timings

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "ort_fp32"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How to measure: `calls` timed calls a round and contestant, after one that is not timed.

    `jobs` files are made at a time, each by a process that may hold the model more than once.
    """

    threads: int
    rounds: int
    calls: int
    settle: float
    reuse: bool
    jobs: int = 1


@dataclass
class Row:
    """One contestant. The first twelve are ARCHITECTURE section 9's; k and n are None for a whole model.

    Attributes:
        m: tokens of one call, batch included.
        median_ms, q1, q3: over rounds, None where it was only opened and run once.
        peak_fraction: operations a second over the processor's measured int8 limit.
        speedup: time of onnxruntime's float32 over this one, median of the rounds, and its quartiles.
        size_ratio: bytes over those of the float32 ONNX file.
        open_seconds, first_run_seconds: until the session exists, and of the first call, in the fresh process.
        peak_mb: highest anonymous and shared memory (RssAnon + RssShmem) of that process while it opened the file and
            ran it once; above_imports_mb: the same without what imports took; peak_rss_mb: highest resident size
            (VmHWM), mapped files included.
        relative_error: of the output against onnxruntime's float32 output.
        same_file_error: of a stock session's output against ours on the same file.
    """

    op: str
    format: str
    group: int
    mode: str
    m: int
    k: int | None
    n: int | None
    provider: str
    median_ms: float | None = None
    q1: float | None = None
    q3: float | None = None
    peak_fraction: float | None = None
    label: str = ""
    rounds_ms: tuple[float, ...] = ()
    speedup: dict[str, float] | None = None
    file_bytes: int = 0
    size_ratio: float | None = None
    made_seconds: float = 0.0
    open_seconds: float = 0.0
    first_run_seconds: float = 0.0
    peak_mb: float = 0.0
    above_imports_mb: float = 0.0
    peak_rss_mb: float = 0.0
    memory_source: str = ""
    relative_error: float | None = None
    same_file_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Found:
    """Everything a run found; `breakdowns` by label of ours, `left_out` by label."""

    rows: list[Row] = field(default_factory=list)
    breakdowns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    macs: int = 0


class Worker:
    """One `benchmarks.denoiser.worker` process with its opened model."""

    def __init__(
        self, contestant: Contestant, file: Path, feeds: Path, threads: int, profile: str | None = None
    ) -> None:
        self.name = contestant.label
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "benchmarks.denoiser.worker"]
        self.log = feeds.with_name(f"worker-{contestant.label.replace(' ', '-')}.log").open("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        asked = {"runtime": contestant.runtime, "file": str(file), "inputs": str(feeds), "threads": threads}
        self.report = self.ask(asked | {"settings": dict(contestant.settings), "profile": profile})

    def ask(self, question: dict[str, Any]) -> Any:
        """One question, one answer. Raises RunError with the last line of its log when the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.log.seek(0)
            reason = self.log.read().strip().splitlines() or [f"exit status {self.process.returncode}"]
            self.close()
            raise RunError(f"its process ended: {reason[-1]}", where=self.name)
        return json.loads(answer)

    def close(self) -> None:
        """End the process; closing again does nothing."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def measure(
    chosen: tuple[Contestant, ...], recipe: Recipe, plan: Plan, say: Say, sleep: Callable[[float], None] = time.sleep
) -> Found:
    """Rows of everyone who can take part; a contestant that fails is left out with its reason."""
    found = Found()
    adapter = adapter_of(recipe.folder / "config", recipe.blocks)
    found.macs = macs(adapter, recipe.batch)
    feeds = recipe.folder / "inputs.npz"
    arrays: dict[str, Any] = {k: v.numpy() for k, v in inputs(adapter, recipe.batch, recipe.seed).items()}
    np.savez(feeds, **arrays)
    made = dict(_made(chosen, recipe, plan, found, say))
    with _workers() as opened:
        for contestant, artefact in made.items():
            row = _open(contestant, artefact, feeds, plan, opened, found, say)
            if row is not None:
                row.m = TOKENS * recipe.batch
                found.rows.append(row)
        _errors(found, recipe.folder)
        say(f"timing {len(opened)} sessions in turns")
        _time(found, opened, plan, sleep)
    for contestant, artefact in made.items():
        if contestant.ours and contestant.label not in found.left_out:
            say(f"profiling {contestant.label}")
            _profile(contestant, artefact, feeds, plan, found)
    _relate(found, made)
    return found


def _made(
    chosen: tuple[Contestant, ...], recipe: Recipe, plan: Plan, found: Found, say: Say
) -> Iterator[tuple[Contestant, Artefact]]:
    """Who has a file. Our files and the float32 one come first: those of peers start from the latter."""
    wanted = [c for c in chosen if not c.missing()]
    first = dict.fromkeys((SOURCE, *(c.artefact for c in wanted if c.artefact in FROM_TORCH)))
    then = dict.fromkeys(c.artefact for c in wanted if c.artefact not in first)
    results: dict[str, Artefact | str] = {}

    def one(name: str) -> Artefact | str:
        say(f"making {name}")
        try:
            return make(name, recipe, reuse=plan.reuse)
        except CompressError as error:
            say(f"  failed: {error}")
            return str(error)

    with ThreadPoolExecutor(plan.jobs) as pool:
        for names in (first, then):
            results |= dict(zip(names, pool.map(one, names), strict=True))
    for contestant in chosen:
        result = contestant.missing() or results[contestant.artefact]
        if isinstance(result, str):
            found.left_out[contestant.label] = result
        else:
            yield contestant, result


@contextmanager
def _workers() -> Iterator[dict[str, Worker]]:
    opened: dict[str, Worker] = {}
    try:
        yield opened
    finally:
        for worker in opened.values():
            worker.close()


def _open(
    contestant: Contestant,
    artefact: Artefact,
    feeds: Path,
    plan: Plan,
    opened: dict[str, Worker],
    found: Found,
    say: Say,
) -> Row | None:
    say(f"opening {contestant.label}")
    try:
        worker = Worker(contestant, artefact.file, feeds, plan.threads)
    except CompressError as error:
        found.left_out[contestant.label] = str(error)
        say(f"  left out: {error}")
        return None
    memory, seconds = worker.report["memory"], worker.report["seconds"]
    worker.ask({"save": str(_output(feeds.parent, contestant.label))})
    if contestant.timed:
        opened[contestant.label] = worker
    else:
        worker.close()
    return Row(
        op="denoiser",
        format=contestant.format,
        group=contestant.group,
        mode=contestant.mode,
        m=0,
        k=None,
        n=None,
        provider=contestant.provider,
        label=contestant.label,
        file_bytes=artefact.bytes,
        made_seconds=artefact.seconds,
        open_seconds=seconds["open"],
        first_run_seconds=seconds["first_run"],
        peak_mb=memory["peak"],
        above_imports_mb=memory["peak"] - memory["baseline"],
        peak_rss_mb=memory["resident"],
        memory_source=memory["source"],
    )


def _output(folder: Path, label: str) -> Path:
    return folder / f"output-{label.replace(' ', '-')}.npy"


def _errors(found: Found, folder: Path) -> None:
    """Every output against that of onnxruntime's float32 session, those of stock sessions against ours too."""
    outputs = {row.label: np.load(_output(folder, row.label)).astype(np.float64) for row in found.rows}
    for row in found.rows:
        if BASELINE in outputs:
            row.relative_error = _relative_error(outputs[row.label], outputs[BASELINE])
        ours = row.label.replace(STOCK, OURS, 1)
        if row.provider == STOCK and ours in outputs:
            row.same_file_error = _relative_error(outputs[row.label], outputs[ours])


def _relative_error(got: Any, expected: Any) -> float:
    """Frobenius norms; peers that keep the learned variances give more channels, of which the first are compared."""
    return float(np.linalg.norm(got[:, : expected.shape[1]] - expected) / np.linalg.norm(expected))


def _time(found: Found, opened: dict[str, Worker], plan: Plan, sleep: Callable[[float], None]) -> None:
    names, samples = list(opened), {name: list[float]() for name in opened}
    for turn in range(plan.rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            sleep(plan.settle)
            opened[name].ask({"calls": 1})
            samples[name].append(1000 * median(opened[name].ask({"calls": plan.calls})))
    for row in found.rows:
        if row.label in samples:
            timings = Timings(tuple(samples[row.label]))
            row.rounds_ms, row.median_ms = timings.samples, timings.median
            row.q1, row.q3 = timings.quartiles


def _profile(contestant: Contestant, artefact: Artefact, feeds: Path, plan: Plan, found: Found) -> None:
    prefix = str(feeds.with_name(f"profile-{contestant.artefact}"))
    try:
        worker = Worker(contestant, artefact.file, feeds, plan.threads, prefix)
        try:
            found.breakdowns[contestant.label] = worker.ask({"breakdown": 1})
        finally:
            worker.close()
    except CompressError as error:
        found.left_out[f"breakdown of {contestant.label}"] = str(error)


def _relate(found: Found, made: dict[Contestant, Artefact]) -> None:
    """Ratios to the float32 file and to onnxruntime's float32 times."""
    full = next((artefact.bytes for c, artefact in made.items() if c.artefact == SOURCE), None)
    base = next((row for row in found.rows if row.label == BASELINE), None)
    for row in found.rows:
        row.size_ratio = row.file_bytes / full if full else None
        if base is not None and base.rounds_ms and row.rounds_ms:
            row.speedup = ratio(row, base)


def ratio(row: Row, other: Row) -> dict[str, float]:
    """How many times faster `row` is: median and quartiles of the rounds' ratios."""
    each = [theirs / mine for mine, theirs in zip(row.rounds_ms, other.rounds_ms, strict=True)]
    q1, value, q3 = np.quantile(each, [0.25, 0.5, 0.75])
    return {"value": float(value), "q1": float(q1), "q3": float(q3)}
