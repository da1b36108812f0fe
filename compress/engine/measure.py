"""Steps whose keys cover code and library versions, and the evaluation made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.engine.cache import Cache, Step
from compress.engine.fingerprint import code_hash, versions
from compress.stages.evaluate import RUNNERS, EvaluateEntry, EvaluationContext, Findings, always

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

        step = self.cache.step(name, {"inputs": inputs, "code": code_hash(), "versions": versions()}, timed)
        self.check()
        return step


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
    for number, entry in enumerate(entries):
        with locating(number):
            step = context.steps.step(f"evaluate-{entry.kind}", _inputs(context, entry), _builder(context, entry))
        assert isinstance(step, Step)
        record(entry, step)
        found = Findings.model_validate_json((step.folder / _FINDINGS).read_text())
        findings.metrics += found.metrics
        findings.tables += found.tables
        findings.figures += found.figures
    context.close()
    return findings


def _inputs(context: EvaluationContext, entry: EvaluateEntry) -> dict[str, Any]:
    return {
        "entry": entry,
        "subjects": {name: subject.key for name, subject in context.subjects.items()},
        "sampler": context.sampler,
        "conditions": context.conditions.facts,
        "judge": context.judge,
        "seed": context.seed,
        "device": context.device,
    }


def _builder(context: EvaluationContext, entry: EvaluateEntry) -> Callable[[Path], dict[str, Any] | None]:
    def build(folder: Path) -> None:
        found = RUNNERS[type(entry)](entry, context)
        (folder / _FINDINGS).write_text(found.model_dump_json())

    return build
