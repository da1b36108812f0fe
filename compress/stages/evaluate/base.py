"""What evaluation works on: the original and the reloaded artefacts, all called alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from torch import nn

from compress.calibration.conditions import Conditions
from compress.calibration.sampler import Denoise, Sampler
from compress.evaluate.operations import LayerOperations
from compress.models.adapter import Adapter
from compress.report.model import Artefact, Figure, Metric, Table
from compress.stages.base import Progress, SilentProgress

CHUNK = 64
"""Images, or pairs, that one cached step computes; a killed run loses at most this many."""


class Findings(BaseModel):
    """What an evaluate entry found."""

    model_config = ConfigDict(extra="forbid")

    metrics: list[Metric] = []
    tables: list[Table] = []
    figures: list[Figure] = []


class FinishedStep(Protocol):
    """A step of the engine's cache, seen from below."""

    @property
    def folder(self) -> Path: ...

    @property
    def result(self) -> dict[str, Any]: ...


class Steps(Protocol):
    """The engine's cache, seen from below: work is done once per content of `inputs`."""

    def step(self, name: str, inputs: Any, build: Callable[[Path], dict[str, Any] | None]) -> FinishedStep: ...


@dataclass(frozen=True)
class Subject:
    """One artefact under evaluation.

    Attributes:
        key: hash of its files.
        open: loads it and returns its denoiser.
        folder: the component's folder, or that of the ONNX file.
        launch: what a child process needs to load it: keyword arguments of `targets.run_once`.
        load: the torch module in float32 on the CPU, as ONNX computes; None for ONNX.
    """

    artefact: Artefact
    key: str
    open: Callable[[], Denoise]
    folder: Path
    launch: Mapping[str, Any]
    load: Callable[[], nn.Module] | None = None


@dataclass
class EvaluationContext:
    """The surroundings of an evaluate entry.

    Attributes:
        adapter: of the original model; it knows shapes, conditions and noise levels.
        subjects: reference first, then checkpoint, then onnx if there is one.
        scheduler_config: of the original pipeline.
        judge: name of the bundled classifier for this model's images, or None.
        operations: per artefact, the arithmetic of every layer.
        layer_weights: weight count of every quantized layer, by name.
    """

    adapter: Adapter
    subjects: Mapping[Artefact, Subject]
    sampler: Sampler
    scheduler_config: Mapping[str, Any]
    conditions: Conditions
    judge: str | None
    steps: Steps
    seed: int
    device: str = "cpu"
    operations: Mapping[Artefact, list[LayerOperations]] = field(default_factory=dict)
    layer_weights: Mapping[str, int] = field(default_factory=dict)
    progress: Progress = field(default_factory=SilentProgress)
    _opened: dict[Artefact, Denoise] = field(default_factory=dict)

    def denoiser(self, artefact: Artefact) -> Denoise:
        """The artefact's denoiser, loaded on first use."""
        if artefact not in self._opened:
            self._opened[artefact] = self.subjects[artefact].open()
        return self._opened[artefact]

    def close(self) -> None:
        """Let go of every loaded artefact."""
        self._opened.clear()

    def compressed(self) -> list[Artefact]:
        """The artefacts that are compared with the reference, in order."""
        return [artefact for artefact in self.subjects if artefact != "reference"]
