"""What a provider of an operator is: something that builds one layer and then runs it on inputs of several sizes."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

Kind = Literal["matmul", "conv"]


class ConvGeometry(NamedTuple):
    """Square kernels only: what the measured U-Nets have."""

    kernel: int
    stride: int
    padding: int
    groups: int = 1


class Layer(NamedTuple):
    """One layer to build: float32, without bias.

    Attributes:
        weight: `[n, k]`, or `[n, c / groups, kernel, kernel]` of a convolution.
        x: the largest input, `[m, k]` or `[b, c, h, w]`; static scales come from it, smaller inputs are its first rows.
        geometry: of a convolution, None for a matmul.
        threads: how many a provider may use.
    """

    weight: Tensor
    x: Tensor
    geometry: ConvGeometry | None
    threads: int

    @property
    def n(self) -> int:
        return self.weight.shape[0]

    @property
    def k(self) -> int:
        return self.weight[0].numel()


class Run(Protocol):
    """A built layer with its input: ready to be timed."""

    def seconds(self, calls: int) -> list[float]:
        """Durations of that many calls, one after the other."""

    def output(self) -> Tensor | None:
        """What the last kind of call computes, as float values of the layer's output; None when it cannot be seen."""

    def exact(self) -> Tensor | None:
        """What the output must be up to the order of additions; None where only the format's error is known."""


Bind = Callable[[Tensor], Run]
Build = Callable[[Layer], Bind]


@dataclass(frozen=True)
class Call:
    """A run of a plain function; `decode` turns its result into the layer's output, outside the timing.

    `backend` is whom our operator chose for it, empty for peers; `reference` computes what it must give.
    """

    function: Callable[[], Any]
    decode: Callable[[Any], Tensor] = lambda result: result
    backend: str = ""
    reference: Callable[[], Tensor | None] = lambda: None

    def seconds(self, calls: int) -> list[float]:
        found = []
        for _ in range(calls):
            start = time.perf_counter()
            self.function()
            found.append(time.perf_counter() - start)
        return found

    def output(self) -> Tensor:
        return self.decode(self.function())

    def exact(self) -> Tensor | None:
        return self.reference()


@dataclass(frozen=True)
class SelfTimed:
    """A run that a library times itself: `times(calls)` gives the seconds of each call; the rest as in `Call`."""

    times: Callable[[int], list[float]]
    result: Callable[[], Tensor | None] = lambda: None
    reference: Callable[[], Tensor | None] = lambda: None

    def seconds(self, calls: int) -> list[float]:
        return self.times(calls)

    def output(self) -> Tensor | None:
        return self.result()

    def exact(self) -> Tensor | None:
        return self.reference()


@dataclass(frozen=True)
class Provider:
    """One column of the comparison.

    Attributes:
        name: of ARCHITECTURE section 9.
        format, group, mode: what the weights are, how many inputs share a scale (0: an output channel), and how
            activations are treated: `exact` and `folded` (ours, activations int8 per token), `float`, `dynamic` and
            `static` (int8 scales found per call, or beforehand), `codes` (int8 codes in, no rounding timed).
        packages: what must be installed.
        limit: largest relative error of its output that its number format explains.
        op: the operator, for rows.
        note: what a reader must know about its numbers.
        slow_build: building takes tens of seconds, so `--quick` leaves it out.
        refusal: why it cannot build anything on this installation; empty when it can.
    """

    name: str
    kind: Kind
    format: str
    group: int
    mode: str
    build: Build
    limit: float
    packages: tuple[str, ...] = ()
    note: str = ""
    slow_build: bool = False
    op: str = ""
    refusal: Callable[[], str] = field(default=lambda: "", repr=False)

    @property
    def label(self) -> str:
        """Name and variant, unique among the providers of a kind."""
        if not self.ours:
            return self.name
        return f"{self.name} {self.format}{f' g{self.group}' if self.group else ''} {self.mode}"

    @property
    def ours(self) -> bool:
        return self.name.startswith("compress")

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install -e '.[bench]'"
        return self.refusal()
