"""Several runs next to each other: size, quality and latency, and which runs no other run beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from compress.errors import InputError
from compress.report.metrics import metric_info
from compress.report.model import Artefact, Data, Figure, Metric, Report
from compress.report.numbers import MISSING
from compress.report.view import formats_of, methods_of, quality_metric

COMPARISON_SCHEMA = 1
Front = Literal["size", "latency"]
CHECKPOINT_FIRST: tuple[Artefact, ...] = ("checkpoint", "onnx")
ONNX_FIRST: tuple[Artefact, ...] = ("onnx", "checkpoint")


class ComparedRun(Data):
    """One run, or the reference: what was done, and what it measured.

    `metrics` are main values by name: of the checkpoint where measured, else of ONNX; `latency_ms` and
    `latency_speedup` the other way round, since the ONNX file is what runs fast. `fronts` names the charts on whose
    Pareto front the run lies.
    """

    run: str
    stages: str
    weights: str
    activations: str
    metrics: dict[str, Metric]
    gates: int = 0
    missed: list[str] = Field(default_factory=list, description="messages of the missed gates")
    fronts: list[Front] = Field(default_factory=list)
    sample: Figure | None = Field(None, exclude=True, description="a row of samples; for the page, not for the JSON")


class Comparison(Data):
    """Runs that share a reference model, in the order given. `quality` is the metric that the fronts judge by."""

    schema_version: int = COMPARISON_SCHEMA
    compress_version: str
    quality: str | None
    reference: ComparedRun | None
    runs: list[ComparedRun]
    warnings: list[str]

    def columns(self) -> list[str]:
        """The metrics that any run or the reference has, in the order of the tables."""
        quality = [self.quality, f"{self.quality}_drop"] if self.quality not in (None, "psnr") else []
        wanted = ["size_bytes", "size_ratio", "psnr", *quality, "frechet_distance", "latency_ms", "latency_speedup"]
        rows = [*self.runs, *([self.reference] if self.reference else [])]
        return [name for name in wanted if name and any(name in row.metrics for row in rows)]


def compare(reports: Sequence[Report]) -> Comparison:
    """The runs side by side, with the Pareto fronts of quality against size and against latency.

    What makes the numbers hard to compare (another model, other evaluate settings, another machine) becomes a warning.

    Raises:
        InputError: there is no report.
    """
    if not reports:
        raise InputError("there is nothing to compare", hint="name at least one run")
    names = _distinct([report.name for report in reports])
    quality = quality_metric(reports)
    runs = [_compared(name, report) for name, report in zip(names, reports, strict=True)]
    for front, cost in (("size", "size_bytes"), ("latency", "latency_ms")):
        best = pareto_front([_costs(run, cost, quality) for run in runs])
        runs = [
            run.model_copy(update={"fronts": [*run.fronts, front]}) if on_front else run
            for run, on_front in zip(runs, best, strict=True)
        ]
    return Comparison(
        compress_version=reports[0].compress_version,
        quality=quality,
        reference=_reference(reports),
        runs=runs,
        warnings=_warnings(names, reports),
    )


def pareto_front(costs: Sequence[tuple[float, ...] | None]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is at most as costly throughout and cheaper somewhere.

    None (something was not measured) is never on the front and beats nothing. Equal points share the front.
    """

    def beats(other: tuple[float, ...], mine: tuple[float, ...]) -> bool:
        return other != mine and all(theirs <= own for theirs, own in zip(other, mine, strict=True))

    return [mine is not None and not any(o is not None and beats(o, mine) for o in costs) for mine in costs]


def _costs(run: ComparedRun, cost: str, quality: str | None) -> tuple[float, float] | None:
    price, value = run.metrics.get(cost), run.metrics.get(quality or "")
    if price is None or value is None or math.isnan(price.value) or math.isnan(value.value):
        return None
    return price.value, value.value if metric_info(value.name).direction == "lower" else -value.value


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once numbered."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(f"{name} #{seen[name]}" if names.count(name) > 1 else name)
    return distinct


def _compared(name: str, report: Report) -> ComparedRun:
    weights, activations = formats_of(report.recipe)
    metrics: dict[str, Metric] = {}
    for metric in dict.fromkeys(m.name for m in report.metrics if not m.labels):
        order = ONNX_FIRST if metric.startswith("latency_") else CHECKPOINT_FIRST
        found = next((hit for artefact in order if (hit := report.find(metric, artefact))), None)
        if found is not None:
            metrics[metric] = found
    return ComparedRun(
        run=name,
        stages=methods_of(report.recipe),
        weights=weights,
        activations=activations,
        metrics=metrics,
        gates=len(report.gates),
        missed=[gate.message for gate in report.gates if not gate.passed],
        sample=next((f for a in CHECKPOINT_FIRST for f in report.figures if f.title == a), None),
    )


def _reference(reports: Sequence[Report]) -> ComparedRun | None:
    """The reference as the first report that measured each of its metrics saw it."""
    metrics: dict[str, Metric] = {}
    for report in reports:
        for metric in report.metrics:
            if metric.artefact == "reference" and not metric.labels:
                metrics.setdefault(metric.name, metric)
    sample = next((f for report in reports for f in report.figures if f.title == "reference"), None)
    if not metrics:
        return None
    return ComparedRun(run="reference", stages="", weights=MISSING, activations=MISSING, metrics=metrics, sample=sample)


def _warnings(names: Sequence[str], reports: Sequence[Report]) -> list[str]:
    first, warnings = reports[0], []
    for name, report in zip(names[1:], reports[1:], strict=True):
        if _identity(report) != _identity(first):
            warnings.append(f"{name} was made from another model than {names[0]}: their numbers do not compare")
        different = _different_settings(first.recipe, report.recipe)
        if different:
            warnings.append(f"{name} was evaluated with other settings than {names[0]}: {', '.join(different)}")
        if report.machine.get("cpu") != first.machine.get("cpu"):
            warnings.append(f"{name} was timed on another machine than {names[0]}: their latencies do not compare")
    return warnings


def _identity(report: Report) -> object:
    """What tells one reference model from another: a hash of its files if the report has one, else its name."""
    hashes = [value for key, value in sorted(report.model.items()) if "sha256" in key or "hash" in key]
    return hashes or report.model.get("source") or report.model.get("name")


def _different_settings(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Where two recipes differ in what evaluation depends on: the entries by kind, the sampler, the seed."""
    kinds, others = _by_kind(one.get("evaluate")), _by_kind(other.get("evaluate"))
    different = [f"evaluate {kind}" for kind in {**kinds, **others} if kinds.get(kind) != others.get(kind)]
    samplers = [
        c.get("sampler") if isinstance(c := recipe.get("calibration"), Mapping) else None for recipe in (one, other)
    ]
    different += ["sampler"] if samplers[0] != samplers[1] else []
    return different + (["seed"] if one.get("seed") != other.get("seed") else [])


def _by_kind(entries: object) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for entry in entries if isinstance(entries, Sequence) else ():
        if isinstance(entry, Mapping):
            found.setdefault(str(entry.get("kind")), []).append(entry)
    return found
