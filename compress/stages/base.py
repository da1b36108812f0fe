"""What every stage is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from compress.calibration.trajectory import Trajectory
from compress.models.adapter import Adapter


class Progress(Protocol):
    """Where a stage says how far it is."""

    def start(self, title: str, total: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def reach(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


class SilentProgress:
    """Says nothing."""

    def start(self, title: str, total: int) -> None:
        """A task of `total` units begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""

    def reach(self, done: int, total: int) -> None:
        """`done` units of the task are done by now."""

    def note(self, text: str) -> None:
        """A line for the log."""


@dataclass(frozen=True)
class RunContext:
    """The surroundings of one stage; nothing else is ambient.

    Attributes:
        adapter: of the model as the previous stages left it; its source folder holds the component to change.
        trajectory: the logged trajectory of the original model, made on first use.
        timesteps: ascending timesteps that the trajectory holds, known before it is logged.
        folder: empty folder the stage writes its component into.
        work: folder that outlives a killed run, for what a long stage has finished of its work; made on first use by
            whoever writes there, removed by the engine when the stage is done.
        seed: of the recipe.
        device: torch device that models run on.
        memory_budget: bytes that the process may take, None for no bound.
        progress: where to report.
    """

    adapter: Adapter
    trajectory: Callable[[], Trajectory]
    timesteps: Callable[[], tuple[float, ...]]
    folder: Path
    work: Path
    seed: int
    device: str = "cpu"
    memory_budget: int | None = None
    progress: Progress = field(default_factory=SilentProgress)


@dataclass(frozen=True)
class StageResult:
    """What a stage wants shown in the report."""

    facts: dict[str, str | float | int | None] = field(default_factory=dict)


class StageRunner(Protocol):
    """Turns the context's component into a new one in `context.folder`."""

    def __call__(self, settings: Any, context: RunContext) -> StageResult: ...


@dataclass(frozen=True)
class StageKind:
    """One kind of stage: the settings class is the key.

    Attributes:
        needs_trajectory: whether the runner will ask for the trajectory, so that plans and cache keys can say so.
    """

    settings: type[Any]
    run: StageRunner
    needs_trajectory: Callable[[Any], bool]


_KINDS: dict[type[Any], StageKind] = {}


def register_stage(kind: StageKind) -> None:
    """Make a stage known by its settings class.

    Raises:
        ValueError: the class is taken.
    """
    if kind.settings in _KINDS:
        raise ValueError(f"{kind.settings.__name__} is registered already")
    _KINDS[kind.settings] = kind


def stage_kind(settings: Any) -> StageKind:
    """The stage kind of a settings object."""
    return _KINDS[type(settings)]
