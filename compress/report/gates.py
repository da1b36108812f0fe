"""Gates: bounds that a recipe puts on metrics, and the judgement of a run's metrics by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import Field, model_validator

from compress.config import Config
from compress.report.metrics import METRICS, suggest_metric
from compress.report.model import Artefact, GateResult, Metric


class Gate(Config):
    """A bound on one metric of one artefact; both bounds are themselves allowed values.

    Raises (as pydantic's ValidationError): the metric is unknown, no bound is given, a bound is not finite, or `min`
    exceeds `max`.
    """

    metric: str = Field(description="One of the metrics that an evaluate entry or the run itself measures.")
    artefact: Artefact = Field("checkpoint", description="What the metric was measured on.")
    min: float | None = Field(None, description="Smallest value that passes.")
    max: float | None = Field(None, description="Largest value that passes.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of the value meant, e.g. {band: '3'}; none means the main value."
    )

    @model_validator(mode="after")
    def _is_a_bound(self) -> Gate:
        if self.metric not in METRICS:
            raise ValueError(f"no metric is called `{self.metric}`: {suggest_metric(self.metric)}")
        if self.min is None and self.max is None:
            raise ValueError(f"the gate on {self.metric} has no bound: give `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the gate on {self.metric} lets nothing pass: `min` {self.min:g} > `max` {self.max:g}")
        return self


def judge(gates: Iterable[Gate], metrics: Sequence[Metric]) -> list[GateResult]:
    """One result per gate, in their order. A value that is missing or NaN fails its gate."""
    return [_judge_one(gate, metrics) for gate in gates]


def _judge_one(gate: Gate, metrics: Sequence[Metric]) -> GateResult:
    wanted = (gate.metric, gate.artefact, gate.labels)
    value = next((m.value for m in metrics if (m.name, m.artefact, m.labels) == wanted), None)
    if value is None:
        passed, verdict = False, _missing(gate, metrics)
    elif math.isnan(value):
        passed, verdict = False, f"is not a number, so it cannot be held against {_bounds(gate)}"
    else:
        passed, verdict = _against_bounds(gate, value)
    return GateResult(
        metric=gate.metric,
        artefact=gate.artefact,
        labels=gate.labels,
        minimum=gate.min,
        maximum=gate.max,
        value=value,
        passed=passed,
        message=f"{_subject(gate)} {verdict}",
    )


def _against_bounds(gate: Gate, value: float) -> tuple[bool, str]:
    if gate.max is not None and value > gate.max:
        return False, f"is {_apart(value, gate.max)}, above the allowed {gate.max:g}"
    if gate.min is not None and value < gate.min:
        return False, f"is {_apart(value, gate.min)}, below the required {gate.min:g}"
    nearest = min((b for b in (gate.min, gate.max) if b is not None), key=lambda bound: abs(bound - value))
    return True, f"is {_apart(value, nearest)}, {_bounds(gate)}"


def _missing(gate: Gate, metrics: Sequence[Metric]) -> str:
    elsewhere = [m for m in metrics if m.name == gate.metric and m.labels == gate.labels]
    if elsewhere:
        places = ", ".join(dict.fromkeys(m.artefact for m in elsewhere))
        return f"was not measured, only that of {places} ({_bounds(gate)} was asked)"
    return f"was not measured ({_bounds(gate)} was asked): {METRICS[gate.metric].measured_by}"


def _subject(gate: Gate) -> str:
    labels = ", ".join(f"{key} {value}" for key, value in gate.labels.items())
    return f"{gate.metric}{f' ({labels})' if labels else ''} of {gate.artefact}"


def _bounds(gate: Gate) -> str:
    return bounds_text(gate.min, gate.max)


def bounds_text(minimum: float | None, maximum: float | None) -> str:
    """The bounds in words: `at most 0.2`, `at least 0.9`, `between 0.1 and 0.2`."""
    if minimum is not None and maximum is not None:
        return f"between {minimum:g} and {maximum:g}"
    return f"at least {minimum:g}" if minimum is not None else f"at most {maximum:g}"


def _apart(value: float, bound: float) -> str:
    """The value in three digits or in as many as it takes to tell it from the bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if (float(text) > bound) == (value > bound) and (float(text) < bound) == (value < bound):
            return text
    return repr(value)
