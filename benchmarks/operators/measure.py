"""Measures cases: builds every provider's layer, checks its output, times them in turns, gives rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operators.cases import Case, Shape
from benchmarks.operators.timing import Budget, interleaved
from benchmarks.peers import Layer, Provider, Run
from benchmarks.peers.base import Bind
from compress.evaluate.latency import Timings

Say = Callable[[str], None]
PARITY = 1e-5
"""Largest relative error of our kernels against the reference: the order of float32 additions."""


@dataclass(frozen=True)
class Row:
    """One provider on one case: ARCHITECTURE section 9, and what makes the numbers checkable.

    Attributes:
        op, format, group, mode, m, k, n, provider, median_ms, q1, q3: the fixed names; quartiles are over rounds.
        peak_fraction: operations a second over the processor's measured int8 limit; None where that is unknown.
        case: name of the case; rows of one case were timed in turns, round by round.
        gops: 10^9 multiplications and additions a second, at the median.
        rounds_ms: the sample of every round.
        relative_error: of the output against the float32 layer, Frobenius norms; None where it cannot be seen.
        reference_error: of ours against the reference backend on the same codes; None for others.
        suspicious: of ours, the reference error is above PARITY; of others, the error is more than the format explains.
        backend: whom our operator chose, empty for others.
    """

    op: str
    format: str
    group: int
    mode: str
    m: int
    k: int
    n: int
    provider: str
    median_ms: float
    q1: float
    q3: float
    peak_fraction: float | None
    case: str
    gops: float
    rounds_ms: tuple[float, ...]
    relative_error: float | None
    suspicious: bool
    reference_error: float | None = None
    backend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class LeftOut:
    """Who was not measured, and why: (provider label, reason) to the cases it misses."""

    reasons: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, provider: Provider, reason: str, case: str = "") -> None:
        cases = self.reasons.setdefault((provider.label, reason), [])
        if case and case not in cases:
            cases.append(case)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"provider": p, "reason": reason, "cases": cases} for (p, reason), cases in self.reasons.items()]


def available(chosen: tuple[Provider, ...], left_out: LeftOut, quick: bool = False) -> tuple[Provider, ...]:
    """The providers that can run here; the others are told to `left_out`."""
    found = []
    for provider in chosen:
        reason = "building takes too long for --quick" if quick and provider.slow_build else provider.missing()
        if reason:
            left_out.add(provider, reason)
        else:
            found.append(provider)
    return tuple(found)


def measure(
    cases: list[Case],
    choose: Callable[[Shape], tuple[Provider, ...]],
    budget: Budget,
    left_out: LeftOut,
    *,
    seed: int,
    threads: int,
    say: Say,
) -> Iterator[list[Row]]:
    """The rows of each case, one list a case. A provider that fails is told to `left_out`; the others go on."""
    torch.set_num_threads(threads)
    for shape, group in groupby(cases, key=lambda case: case.shape):
        layer = shape.layer(seed, threads)
        built = dict(_built(choose(shape), layer, shape, left_out, say))
        for case in group:
            say(case.name)
            yield _rows(case, layer, built, budget, left_out, say)


def _built(
    chosen: tuple[Provider, ...], layer: Layer, shape: Shape, left_out: LeftOut, say: Say
) -> Iterator[tuple[Provider, Bind]]:
    for provider in chosen:
        try:
            yield provider, provider.build(layer)
        except Exception as error:  # a peer raises what it likes, and its failure must not end the comparison
            _failed(provider, error, f"{shape.op}/{shape.name}", left_out, say)


def _failed(provider: Provider, error: Exception, place: str, left_out: LeftOut, say: Say) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    say(f"  {provider.label} left out: {reason}")
    left_out.add(provider, reason, place)


def reference(layer: Layer, x: Tensor) -> Tensor:
    """What the layer computes in floating point."""
    if layer.geometry is None:
        return F.linear(x, layer.weight)
    _, stride, padding, groups = layer.geometry
    return F.conv2d(x, layer.weight, None, stride, padding, 1, groups)


def _rows(
    case: Case, layer: Layer, built: dict[Provider, Bind], budget: Budget, left_out: LeftOut, say: Say
) -> list[Row]:
    x = layer.x[: case.m].contiguous() if layer.geometry is None else layer.x
    runs = _checked(case, x, reference(layer, x), built, left_out, say)
    timings = interleaved({provider.label: found.run for provider, found in runs.items()}, budget)
    return [_row(case, provider, found, timings[provider.label]) for provider, found in runs.items()]


class _Checked(NamedTuple):
    run: Run
    error: float | None
    reference_error: float | None
    suspicious: bool


def _checked(
    case: Case, x: Tensor, expected: Tensor, built: dict[Provider, Bind], left_out: LeftOut, say: Say
) -> dict[Provider, _Checked]:
    """Everyone who runs, with the error of the output against `expected` and, of ours, against the reference."""
    found = {}
    for provider, bind in built.items():
        try:
            run = bind(x)
            run.seconds(1)
            output, exact = run.output(), run.exact()
            error = _relative_error(output, expected)
            difference = None if exact is None else _relative_error(output, exact)
        except Exception as problem:  # as in _built
            _failed(provider, problem, case.name, left_out, say)
            continue
        checked, limit = (error, provider.limit) if difference is None else (difference, PARITY)
        suspicious = checked is not None and not checked <= limit  # NaN is suspicious too
        if suspicious:
            say(f"  {provider.label}: relative error {checked:.3g}, explained are {limit:g}")
        found[provider] = _Checked(run, error, difference, suspicious)
    return found


def _row(case: Case, provider: Provider, found: _Checked, timings: Timings) -> Row:
    q1, q3 = timings.quartiles
    return Row(
        op=provider.op or case.shape.op,
        format=provider.format,
        group=provider.group,
        mode=provider.mode,
        m=case.m,
        k=case.shape.k,
        n=case.shape.n,
        provider=provider.name,
        median_ms=timings.median,
        q1=q1,
        q3=q3,
        peak_fraction=None,
        case=case.name,
        gops=case.operations / timings.median / 1e6,
        rounds_ms=timings.samples,
        relative_error=found.error,
        suspicious=found.suspicious,
        reference_error=found.reference_error,
        backend=getattr(found.run, "backend", ""),
    )


def _relative_error(output: Tensor | None, expected: Tensor) -> float | None:
    if output is None:
        return None
    if output.shape != expected.shape:
        raise ValueError(f"the output is {list(output.shape)}, not {list(expected.shape)}")
    return float((output.double() - expected.double()).norm() / expected.double().norm())
