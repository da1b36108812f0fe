"""Peak memory of a function, measured in a process of its own: `python -m compress.evaluate.memory --target a.b:run`.

On Linux a thread of the child samples RssAnon + RssShmem: pages that only this process needs, so that files mapped
into memory (weights, libraries) count when they are copied, not when they are looked at. Elsewhere it is the largest
resident size that the system reports. One MB is 10^6 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from compress.errors import InputError, RunError
from compress.report.model import Artefact, Metric

_STATUS = Path("/proc/self/status")
_MB = 1e6


class PeakMemory(NamedTuple):
    """What one child measured, in MB.

    Attributes:
        peak: highest sampled private memory while the function ran, everything included.
        baseline: the same just before it ran, after its module was imported.
        resident: highest resident size, mapped files included (an upper bound that no sampling can miss).
        seconds: duration of the call.
        samples: readings taken; few of them mean that a short peak may have been missed.
        source: where `peak` comes from, `RssAnon+RssShmem` or `ru_maxrss`.
    """

    peak: float
    baseline: float
    resident: float
    seconds: float
    samples: int
    source: str


def measure_peak(
    target: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    interval_ms: float = 2.0,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> PeakMemory:
    """Peak memory of `module:function(**arguments)`, run once in a fresh interpreter.

    Args:
        arguments: keyword arguments that JSON can hold; pass paths, not tensors.
        timeout: seconds after which the child is ended.
        environment: variables set for the child besides those of this process, such as OMP_NUM_THREADS.

    Raises:
        InputError: `target` is not of the form `module:function`.
        RunError: the child failed or took too long; the message ends with the last line it wrote.
    """
    _split_target(target)
    command = [sys.executable, "-m", "compress.evaluate.memory", "--target", target]
    command += ["--arguments", json.dumps(dict(arguments or {})), "--interval-ms", str(interval_ms)]
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=variables, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"measuring the memory took longer than {timeout} s", where=target) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"the measured process failed: {last}", where=target)
    return PeakMemory(**json.loads(done.stdout.strip().splitlines()[-1]))


def peak_metrics(
    runs: Sequence[PeakMemory], *, artefact: Artefact, labels: Mapping[str, str] | None = None
) -> list[Metric]:
    """`peak_rss_mb`, median and range over runs: the whole, and what lies above the imports (part = above_imports)."""
    if not runs:
        raise InputError("no memory measurement was given")
    whole, above = [run.peak for run in runs], [run.peak - run.baseline for run in runs]
    return [
        Metric(
            name="peak_rss_mb",
            value=median(values),
            unit="MB",
            n=len(runs),
            spread={"min": min(values), "max": max(values)},
            artefact=artefact,
            labels={**(labels or {}), **part},
        )
        for values, part in ((whole, {}), (above, {"part": "above_imports"}))
    ]


class _Sampler:
    """The highest reading between `start` and `stop`, taken every `interval` seconds by a thread."""

    def __init__(self, read: Callable[[], float], interval: float) -> None:
        self.read, self.interval = read, interval
        self.peak, self.samples = 0.0, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._sample()  # once more: what is held at the end counts even if the thread never ran

    def _sample(self) -> None:
        self.peak = max(self.peak, self.read())
        self.samples += 1

    def _loop(self) -> None:
        while not self._stopped.wait(self.interval):
            self._sample()


def run_measured(function: Callable[..., object], arguments: Mapping[str, Any], interval: float) -> PeakMemory:
    """Peak memory of this process while it runs the function; readings every `interval` seconds."""
    read = _private_mb if _STATUS.is_file() else _largest_resident_mb
    baseline = read()
    sampler = _Sampler(read, interval)
    sampler.start()
    start = time.perf_counter()
    try:
        result = function(**arguments)  # held until the last reading
    finally:
        seconds = time.perf_counter() - start
        sampler.stop()
    del result
    source = "RssAnon+RssShmem" if _STATUS.is_file() else "ru_maxrss"
    return PeakMemory(sampler.peak, baseline, _largest_resident_mb(), seconds, sampler.samples, source)


def _status_mb(*keys: str) -> float:
    """Sum of fields of /proc/self/status, which are in KiB, in MB."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return sum(int(fields[key].split()[0]) for key in keys if key in fields) * 1024 / _MB


def _private_mb() -> float:
    return _status_mb("RssAnon", "RssShmem")


def _largest_resident_mb() -> float:
    if _STATUS.is_file():
        return _status_mb("VmHWM")
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / _MB  # macOS counts bytes, others KiB


def _split_target(target: str) -> tuple[str, str]:
    module, _, function = target.partition(":")
    if not module or not function:
        raise InputError(f"`{target}` does not name a function", hint="write module:function")
    return module, function


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the child: imports, measures, prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="module:function")
    parser.add_argument("--arguments", default="{}", help="keyword arguments as a JSON object")
    parser.add_argument("--interval-ms", type=float, default=2.0)
    given = parser.parse_args(argv)
    module, name = _split_target(given.target)
    with contextlib.redirect_stdout(sys.stderr):  # whatever the function prints
        function = getattr(importlib.import_module(module), name)
        found = run_measured(function, json.loads(given.arguments), given.interval_ms / 1000)
    print(json.dumps(found._asdict()))


if __name__ == "__main__":
    main()
