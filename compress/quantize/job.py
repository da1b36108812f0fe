"""What a quantization method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from compress.calibration.trajectory import Trajectory
from compress.formats import QTensor
from compress.models.adapter import Adapter
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment
from compress.quantize.settings import Split


class QuantizedPart(NamedTuple):
    """One finished operator of a layer: packed weight, and stored tensors of its input by name (`input_scale`, ...).

    Without `inputs`, the scale that the stage measured before the method ran is stored, if there is one.
    """

    weight: QTensor
    inputs: Mapping[str, Tensor] = {}


class QuantizedLayer(NamedTuple):
    """One finished layer: its parts in the order of `LayerSpec.parts`, its bias when the method changed it."""

    name: str
    parts: tuple[QuantizedPart, ...]
    bias: Tensor | None = None


class Progress(Protocol):
    """Where a method says how far it is."""

    def start(self, title: str, total: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Says nothing."""

    def start(self, title: str, total: int) -> None:
        """A task of `total` units begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""

    def note(self, text: str) -> None:
        """A line for the log."""


@dataclass(frozen=True)
class Calibration:
    """What methods need that learn from the model's own sampling.

    Attributes:
        adapter: of the model that is quantized.
        load: the full-precision model with its weights, float32, in eval mode, on `device`; a new one in each call.
        trajectory: the logged denoiser inputs.
        work: folder that outlives a killed run, for what is finished of the stage; the engine removes it afterwards.
        device: torch device.
        memory_budget: bytes that the process may take, None for no bound.
    """

    adapter: Adapter
    load: Callable[[], nn.Module]
    trajectory: Callable[[], Trajectory]
    work: Path
    device: str = "cpu"
    memory_budget: int | None = None
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class QuantizeJob:
    """Inputs of a method. Weights are read one at a time, so a method need not hold the model.

    Attributes:
        assignments: the layers to quantize (their `spec` is never None), in the model's order.
        read: float32 tensor of the model by its full name.
        static_scales: activation scales that observers measured, by the qualified name of the layer's part.
        seed: for methods that draw; combine it with the layer's name.
        tick: called with a layer's name when it is done.
        calibration: for methods that run the model; the stage gives it to those that `needs_trajectory`.
    """

    assignments: tuple[Assignment, ...]
    read: Callable[[str], Tensor]
    static_scales: Mapping[str, StaticScale] = field(default_factory=dict)
    seed: int = 0
    tick: Callable[[str], None] = lambda name: None
    calibration: Calibration | None = None


class Surroundings(Protocol):
    """What a method may ask of the model and the recipe before anything is loaded."""

    def conditioning(self) -> frozenset[str]:
        """Names of the layers whose input depends on timestep and class alone. Raises ModelError where unknown."""
        ...

    def timesteps(self) -> tuple[float, ...]:
        """Ascending timesteps that the calibration trajectory visits."""
        ...


Prepare = Callable[[Any, Sequence[Assignment], Surroundings], list[Assignment]]


def unchanged(settings: Any, assignments: Sequence[Assignment], around: Surroundings) -> list[Assignment]:
    """The formats as the recipe's settings and rules give them."""
    return list(assignments)


def never(settings: Any) -> bool:
    """For methods that look at weights alone."""
    return False


@dataclass(frozen=True)
class Method:
    """A published algorithm: its recipe settings, its runner, and where it comes from.

    Attributes:
        prepare: what the method itself decides about formats (split layers, scales per timestep, smoothing) before the
            plan is made; it may raise RecipeError for formats that it cannot serve.
        needs_trajectory: whether it runs the model on the calibration trajectory.
        observes: whether the stage measures static activation scales with the recipe's observers first.
        caches_embeddings: whether the time embedding becomes a table of its values at the calibrated timesteps.
        split: which layers on a concatenation with a skip it divides, where the recipe does not say.
    """

    name: str
    title: str
    citation: str
    summary: str
    settings: type[Any]
    run: Callable[[Any, QuantizeJob], Iterator[QuantizedLayer]]
    prepare: Prepare = unchanged
    needs_trajectory: Callable[[Any], bool] = never
    caches_embeddings: Callable[[Any], bool] = never
    observes: bool = True
    split: Split = "none"
