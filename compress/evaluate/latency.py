"""Wall-clock time of competing callables, interleaved: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

from compress.errors import InputError
from compress.report.model import Artefact, Metric


class Timings(NamedTuple):
    """Milliseconds of every measured call, in the order of the rounds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, linearly interpolated."""
        return _quartiles(self.samples)


def interleaved_latency(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timings]:
    """Timings of each callable by name: every round calls each once, and each round starts with the next one.

    Args:
        rounds: measured calls of each.
        warmup: calls of each before the first measured one, in the same order.
        clock: seconds, increasing.

    Raises:
        InputError: there is nothing to measure, or no round.
    """
    if not callables or rounds < 1 or warmup < 0:
        raise InputError(f"nothing to time: {len(callables)} callables, {rounds} rounds, {warmup} warm-up calls")
    names = list(callables)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            callables[name]()
            elapsed = clock() - start
            if turn >= 0:
                samples[name].append(elapsed * 1000)
    return {name: Timings(tuple(values)) for name, values in samples.items()}


def latency_metric(timings: Timings, *, artefact: Artefact, labels: Mapping[str, str] | None = None) -> Metric:
    """`latency_ms`: the median call, with quartiles. Batch, threads and provider belong in the labels."""
    q1, q3 = timings.quartiles
    return Metric(
        name="latency_ms",
        value=timings.median,
        unit="ms",
        n=len(timings.samples),
        spread={"q1": q1, "q3": q3},
        artefact=artefact,
        labels=dict(labels or {}),
    )


def speedup_metric(
    baseline: Timings, timings: Timings, *, artefact: Artefact, labels: Mapping[str, str] | None = None
) -> Metric:
    """`latency_speedup`: ratio of the medians, with the quartiles of the ratios of calls in the same round.

    Raises:
        InputError: the two do not come from the same rounds.
    """
    if len(baseline.samples) != len(timings.samples):
        raise InputError(
            "a speed-up needs timings of the same rounds", hint="time both in one interleaved_latency call"
        )
    q1, q3 = _quartiles([before / after for before, after in zip(baseline.samples, timings.samples, strict=True)])
    return Metric(
        name="latency_speedup",
        value=baseline.median / timings.median,
        unit="x",
        n=len(timings.samples),
        spread={"q1": q1, "q3": q3},
        artefact=artefact,
        labels=dict(labels or {}),
    )


def _quartiles(values: tuple[float, ...] | list[float]) -> tuple[float, float]:
    points = torch.tensor([0.25, 0.75], dtype=torch.float64)
    q1, q3 = torch.quantile(torch.tensor(values, dtype=torch.float64), points).tolist()
    return q1, q3
