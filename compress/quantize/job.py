"""What a quantization method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from compress.formats import QTensor
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment


class QuantizedLayer(NamedTuple):
    """One finished layer: packed weight, and its bias when the method changed it (None: the original's)."""

    name: str
    weight: QTensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class QuantizeJob:
    """Inputs of a method. Weights are read one at a time, so a method need not hold the model.

    Attributes:
        assignments: the layers to quantize (their `spec` is never None), in the model's order.
        read: float32 tensor of the model by its full name.
        static_scales: activation scales by layer name, for layers with static inputs.
        seed: for methods that draw; combine it with the layer's name.
        tick: called with a layer's name when it is done.
    """

    assignments: tuple[Assignment, ...]
    read: Callable[[str], Tensor]
    static_scales: Mapping[str, StaticScale] = field(default_factory=dict)
    seed: int = 0
    tick: Callable[[str], None] = lambda name: None


@dataclass(frozen=True)
class Method:
    """A published algorithm: its recipe settings, its runner, and where it comes from."""

    name: str
    title: str
    citation: str
    summary: str
    settings: type[Any]
    run: Callable[[Any, QuantizeJob], Iterator[QuantizedLayer]]
