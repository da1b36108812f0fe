"""What the renderers show of a report: rows, bands, breakdowns and the verdict, still free of any markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from compress.report.metrics import METRICS, MetricInfo, metric_info
from compress.report.model import Artefact, GateResult, Metric, Report, Table
from compress.report.numbers import MISSING, plain
from compress.report.tables import ARTEFACTS, bytes_table

QUALITY_METRICS = ("class_accuracy", "alignment", "psnr")
FLOOR, TENSOR_CLASS = "floor", "tensor_class"
AGAINST_FP16 = {"against": "float16"}


class MetricRow(NamedTuple):
    """A metric across artefacts; `labels` holds the values of a breakdown's keys and is empty for main values."""

    name: str
    info: MetricInfo
    cells: dict[Artefact, Metric]
    labels: tuple[str, ...] = ()


class Breakdown(NamedTuple):
    """A metric per label: accuracy per class, and the like."""

    name: str
    info: MetricInfo
    keys: tuple[str, ...]
    rows: list[MetricRow]


class Band(NamedTuple):
    """A noise band: its name, its range of sigma if the labels tell, and a metric of it per artefact."""

    name: str
    low: float | None
    high: float | None
    cells: dict[Artefact, Metric]

    @property
    def range_text(self) -> str:
        """The range of sigma in words, "" where it is unknown."""
        if self.low is None or self.high is None:
            return ""
        ends = [plain(end) for end in (self.low, self.high)]
        return ends[0] if ends[0] == ends[1] else " to ".join(ends)


class Verdict(NamedTuple):
    """How the run did by its gates, in a word and in a sentence."""

    state: Literal["met", "missed", "none"]
    title: str
    missed: list[GateResult]


def verdict(gates: Sequence[GateResult]) -> Verdict:
    """Whether all gates were met."""
    missed = [gate for gate in gates if not gate.passed]
    if not gates:
        return Verdict("none", "No gates were set", [])
    many = f"{len(gates)} gate{'s' if len(gates) > 1 else ''}"
    if missed:
        return Verdict("missed", f"{len(missed)} of {many} missed", missed)
    return Verdict("met", f"All {many} met" if len(gates) > 1 else "The gate was met", [])


def artefacts_of(report: Report) -> list[Artefact]:
    """The artefacts that anything was measured on, in fixed order."""
    found = {metric.artefact for metric in report.metrics}
    return [artefact for artefact in ARTEFACTS if artefact in found]


def main_rows(report: Report) -> list[MetricRow]:
    """The main value of every metric, known ones first in their fixed order; the size also against fp16."""
    cells: dict[str, dict[Artefact, Metric]] = {name: {} for name in METRICS}
    for metric in report.metrics:
        if not metric.labels:
            cells.setdefault(metric.name, {}).setdefault(metric.artefact, metric)
    rows = []
    for name, found in cells.items():
        if not found:
            continue
        rows.append(MetricRow(name, metric_info(name, next(iter(found.values())).unit), found))
        halves = {m.artefact: m for m in report.metrics if m.name == name and m.labels == AGAINST_FP16}
        if name == "size_ratio" and halves:
            info = METRICS[name]._replace(description="bytes over those of the original in fp16")
            rows.append(MetricRow(name, info, halves, ("fp16",)))
    return rows


def floors(report: Report) -> list[Metric]:
    """What the reference differs by from itself between two runs: overall values labelled `floor`."""
    return [metric for metric in report.metrics if set(metric.labels) == {FLOOR}]


def class_bytes(report: Report) -> Table | None:
    """Bytes by tensor class: the report's own table of kind `bytes`, else one made of `size_bytes` by class."""
    own = next((table for table in report.tables if table.kind == "bytes"), None)
    if own is not None:
        return own
    sizes: dict[Artefact, dict[str, int]] = {}
    for metric in report.metrics:
        if metric.name == "size_bytes" and set(metric.labels) == {TENSOR_CLASS}:
            sizes.setdefault(metric.artefact, {})[metric.labels[TENSOR_CLASS]] = round(metric.value)
    return bytes_table(sizes) if sizes else None


def breakdowns(report: Report) -> list[Breakdown]:
    """Every metric that carries labels and has no place of its own, grouped by name and keys, in the order reported."""
    groups: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], dict[Artefact, Metric]]] = {}
    for metric in report.metrics:
        if not metric.labels or _shown_elsewhere(metric):
            continue
        rows = groups.setdefault((metric.name, tuple(metric.labels)), {})
        rows.setdefault(tuple(metric.labels.values()), {}).setdefault(metric.artefact, metric)
    result = []
    for (name, keys), rows in groups.items():
        first = next(iter(next(iter(rows.values())).values()))
        info = metric_info(name, first.unit)
        result.append(Breakdown(name, info, keys, [MetricRow(name, info, cells, v) for v, cells in rows.items()]))
    return result


def _shown_elsewhere(metric: Metric) -> bool:
    is_band = metric.name == "noise_error" and _is_band(metric.labels)
    is_class = metric.name == "size_bytes" and TENSOR_CLASS in metric.labels
    return is_band or is_class or FLOOR in metric.labels or metric.labels == AGAINST_FP16


def bands(report: Report, name: str = "noise_error") -> list[Band]:
    """A metric per noise band, from low noise to high where the labels tell sigma, else in the order reported.

    Values labelled `floor` are the reference against itself, so they stand in the reference's column.
    """
    found: dict[tuple[tuple[str, str], ...], dict[Artefact, Metric]] = {}
    for metric in report.metrics:
        if metric.name == name and _is_band(metric.labels):
            key = tuple(label for label in metric.labels.items() if label[0] != FLOOR)
            found.setdefault(key, {}).setdefault(metric.artefact, metric)
    result = [_band(dict(labels), cells) for labels, cells in found.items()]
    if all(band.low is not None for band in result):
        result.sort(key=lambda band: (band.low or 0.0, band.high or 0.0))
    return result


def _is_band(labels: Mapping[str, str]) -> bool:
    return any(key == "band" or key.startswith("sigma") for key in labels)


def _band(labels: Mapping[str, str], cells: dict[Artefact, Metric]) -> Band:
    low, high = _sigma(labels.get("sigma_low", "")), _sigma(labels.get("sigma_high", ""))
    if low is None or high is None:
        low = high = _sigma(labels.get("sigma", ""))
    return Band(labels.get("band") or " ".join(labels.values()), low, high, cells)


def _sigma(words: str) -> float | None:
    """A noise level from its label; infinity (a flow model at pure noise) is one, NaN and words are not."""
    try:
        value = float(words)
    except ValueError:
        return None
    return value if value >= 0 else None


class Formats(NamedTuple):
    """What the recipe asks of weights and activations, in a few letters: `int4 g64`, `int8`."""

    weights: str
    activations: str


def formats_of(recipe: Mapping[str, object]) -> Formats:
    """The formats of the first quantize stage of the denoiser, a dash where the recipe has none."""
    stages = recipe.get("stages")
    for stage in stages if isinstance(stages, Sequence) else ():
        if isinstance(stage, Mapping) and stage.get("kind") == "quantize":
            if stage.get("component") not in (None, "denoiser"):
                continue
            return Formats(_format(stage.get("weights")), _format(stage.get("activations")))
    return Formats(MISSING, MISSING)


def _format(settings: object) -> str:
    if not isinstance(settings, Mapping):
        return MISSING
    budget = settings.get("budget")
    if isinstance(budget, Mapping):
        return " ".join(["mixed", *(f"{value:g}" for value in budget.values() if isinstance(value, (int, float)))])
    words = str(settings.get("format") or MISSING)
    group = settings.get("group")
    return f"{words} g{group}" if settings.get("granularity") == "group" and group else words


def methods_of(recipe: Mapping[str, object]) -> str:
    """The stages and their methods in order: `prune tinyfusion, quantize gptq`."""
    stages = recipe.get("stages")
    words = []
    for stage in stages if isinstance(stages, Sequence) else ():
        if isinstance(stage, Mapping):
            method = stage.get("method")
            kind = method.get("kind") if isinstance(method, Mapping) else None
            words.append(" ".join(str(word) for word in (stage.get("kind"), kind) if word))
    return ", ".join(words)


def quality_metric(reports: Sequence[Report], artefact: Artefact = "checkpoint") -> str | None:
    """The metric to plot quality by: the first of the preferred ones that most reports measured on the artefact."""
    counts = {name: sum(report.find(name, artefact) is not None for report in reports) for name in QUALITY_METRICS}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None
