"""Steps whose keys cover code and library versions, and the evaluation made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compress.engine.cache import Cache, Step
from compress.engine.fingerprint import code_hash, tree_hashes, versions
from compress.evaluate.machine import machine_facts
from compress.models.zoo.classifier import classifier_folder
from compress.stages.evaluate import RUNNERS, EvaluateEntry, EvaluationContext, Findings, always, parity
from compress.stages.evaluate.settings import Latency

_FINDINGS = "findings.json"


@dataclass(frozen=True)
class KeyedSteps:
    """Cached steps keyed by their inputs, the code and the libraries; the result of each knows its seconds.

    Attributes:
        check: called before and after each step; raises to stop the run.
    """

    cache: Cache
    check: Callable[[], None] = lambda: None

    def step(self, name: str, inputs: Any, build: Callable[[Path], dict[str, Any] | None]) -> Step:
        """The finished step, built now if it is not there."""
        self.check()

        def timed(folder: Path) -> dict[str, Any]:
            start = time.monotonic()
            result = build(folder) or {}
            return {**result, "seconds": round(time.monotonic() - start, 3)}

        step = self.cache.step(name, _keyed(inputs), timed)
        self.check()
        return step

    def location(self, name: str, inputs: Any) -> Path:
        """Folder that the step has, or will have."""
        return self.cache.location(name, _keyed(inputs))[0]


def _keyed(inputs: Any) -> dict[str, Any]:
    return {"inputs": inputs, "code": code_hash(), "versions": versions()}


def measure(
    context: EvaluationContext,
    entries: Sequence[EvaluateEntry],
    record: Callable[[EvaluateEntry, Step], None],
    locating: Callable[[int], AbstractContextManager[None]] = lambda number: nullcontext(),
) -> Findings:
    """What is always measured, and what the entries ask for; an entry measured before is read back.

    Args:
        record: told of every entry when it is done.
        locating: wraps the work on entry `number`, to give errors a place.
    """
    findings = always.run(context)
    if "onnx" in context.subjects:
        add(findings, _step(context, "evaluate-parity", {}, parity.run)[1])
    for number, entry in enumerate(entries):
        with locating(number):
            step, found = _step(context, f"evaluate-{entry.kind}", entry, partial(RUNNERS[type(entry)], entry))
        record(entry, step)
        add(findings, found)
    context.close()
    return findings


def add(findings: Findings, more: Findings) -> None:
    """Append what another entry found."""
    findings.metrics += more.metrics
    findings.tables += more.tables
    findings.figures += more.figures


def _step(
    context: EvaluationContext, name: str, settings: Any, find: Callable[[EvaluationContext], Findings]
) -> tuple[Step, Findings]:
    """What `find` finds, found now or read back."""

    def build(folder: Path) -> None:
        (folder / _FINDINGS).write_text(find(context).model_dump_json())

    step = context.steps.step(name, _inputs(context, settings), build)
    assert isinstance(step, Step)
    return step, Findings.model_validate_json((step.folder / _FINDINGS).read_text())


def _inputs(context: EvaluationContext, settings: Any) -> dict[str, Any]:
    return {
        "settings": settings,
        "subjects": {name: subject.key for name, subject in context.subjects.items()},
        "sampler": context.sampler,
        "conditions": context.conditions.facts,
        "judge": None if context.judge is None else tree_hashes(classifier_folder(context.judge), ["*.safetensors"]),
        "machine": machine_facts() if isinstance(settings, Latency) else None,
        "seed": context.seed,
        "device": context.device,
    }
