"""Evaluate entries of a recipe: what is measured on the reloaded artefacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.stages.evaluate import images, noise, speed, temporal
from compress.stages.evaluate.base import EvaluationContext, Findings
from compress.stages.evaluate.settings import EvaluateEntry, Generation, Latency, NoiseError, Paired, TemporalError

RUNNERS: dict[type[Any], Callable[[Any, EvaluationContext], Findings]] = {
    NoiseError: noise.run,
    Paired: images.run_paired,
    Generation: images.run_generation,
    Latency: speed.run,
    TemporalError: temporal.run,
}

__all__ = ["RUNNERS", "EvaluateEntry", "EvaluationContext", "Findings"]
