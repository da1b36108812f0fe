"""A measured table as JSON for programs and Markdown for people; both from the same numbers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables.runner import Done, Task
from benchmarks.tables.table import Cell, Finding, Result, Results, Table
from compress.errors import RunError
from compress.evaluate.protocol import Protocol
from compress.evaluate.within_noise import NoiseVerdict, within_noise
from compress.report import markdown
from compress.report.model import Metric


@dataclass
class Measured:
    """A table and what is known of it so far.

    Attributes:
        results: cells by (section, row, column).
        full: metrics of full precision by section.
        failures: why a task found nothing, by its name.
        models: hash of each section's original model.
        seconds: of all finished tasks together, when they were measured.
        facts: machine, versions, commit.
    """

    table: Table
    protocol: Protocol
    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    full: dict[str, list[Metric]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, task: Task, done: Done) -> None:
        """Enter what a task found.

        Raises:
            RunError: the section's model is not the one that earlier tasks measured.
        """
        if done.found is None:
            self.failures[task.name] = done.failure
            return
        if self.models.setdefault(task.section, done.found.model) != done.found.model:
            raise RunError(f"{task.section}: the model changed while it was measured", hint="measure the table again")
        self.seconds += done.found.seconds
        if task.cell is None:
            self.full.setdefault(task.section, []).extend(done.found.metrics)
            return
        place = key(task.cell)
        before = self.results.get(place, Result(()))
        self.results[place] = Result((*before.metrics, *done.found.metrics))

    def ranked(self) -> Results:
        """The cells whose ranking metrics are there."""
        return {place: result for place, result in self.results.items() if result.find("noise_error") is not None}

    def findings(self) -> list[Finding]:
        """The table's own statements, checked on the cells at hand."""
        return self.table.findings(self.ranked())

    def missing(self) -> list[str]:
        """Names of the cells that have no ranking yet."""
        ranked = self.ranked()
        return [cell.name for cell in self.table.cells if key(cell) not in ranked]

    def full_values(self, section: str, name: str) -> list[float]:
        """Values of a full-precision metric at every seed it was measured at."""
        return [m.value for m in self.full.get(section, []) if m.name == name and set(m.labels) == {"seed"}]

    def verdict(self, cell: Cell, difference: str) -> NoiseVerdict | None:
        """Whether the cell's `difference` (a key of JUDGED) is within noise; None while something is unmeasured."""
        result, values = self.results.get(key(cell)), self.full_values(cell.section, JUDGED[difference])
        metric = None if result is None else result.find(difference)
        if metric is None or len(values) < self.protocol.seeds:
            return None
        return within_noise(metric.value, (metric.spread["ci95_low"], metric.spread["ci95_high"]), values)


JUDGED = {"class_accuracy_drop": "class_accuracy", "frechet_increase": "frechet_distance"}
"""Differences that are judged against noise, and the full-precision metric whose spread over seeds judges them."""


def key(cell: Cell) -> tuple[str, str, str]:
    """Where a cell's result is kept."""
    return (cell.section, cell.row, cell.column)


def to_json(measured: Measured) -> str:
    """Everything measured, with unit, n, seed and spread."""
    table = measured.table
    cells = []
    for cell in table.cells:
        if (result := measured.results.get(key(cell))) is None:
            continue
        verdicts = {name: measured.verdict(cell, name) for name in JUDGED}
        cells.append(
            {
                "section": cell.section,
                "row": cell.row,
                "column": cell.column,
                "stages": [dict(stage) for stage in cell.stages],
                "metrics": [m.model_dump(mode="json") for m in result.metrics],
                "within_noise": {
                    name: {**verdict._asdict(), "within": verdict.within}
                    for name, verdict in verdicts.items()
                    if verdict is not None
                },
            }
        )
    data = {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "protocol": measured.protocol.model_dump(mode="json"),
        "facts": measured.facts,
        "core_seconds": round(measured.seconds),
        "sections": {
            section: {"source": source, "sha256": measured.models.get(section)}
            for section, source in table.sections.items()
        },
        "full_precision": {s: [m.model_dump(mode="json") for m in found] for s, found in measured.full.items()},
        "cells": cells,
        "findings": [finding._asdict() for finding in measured.findings()],
        "failures": measured.failures,
        "missing": measured.missing(),
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def to_markdown(measured: Measured) -> str:
    """The table for people: a matrix of each ranking metric a section, headline rows, floors, findings."""
    table, p, ranked = measured.table, measured.protocol, measured.ranked()
    sampler = f"{p.sampler.kind.upper()}, {p.sampler.steps} steps, guidance {p.sampler.guidance_scale:g}"
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.facts.items())
    parts = [
        f"# {table.title}",
        table.note,
        _lines(
            f"Measured by `python -m benchmarks.tables {table.name}` as docs/evaluation.md lays down: noise error on "
            f"{p.pairs:,} stored pairs, PSNR of {p.images} image pairs ({sampler}). Seed 0; every interval is in "
            f"{table.name}.json. {measured.seconds / 60:.0f} minutes of work, shared by the processes. {facts}."
        ),
    ]
    for section in table.sections:
        if any(place[0] == section for place in ranked):
            parts += _section(measured, section)
    if found := measured.findings():
        rows = [[f.statement, "**no**" if f.holds == "no" else f.holds, f.evidence] for f in found]
        told = "`within intervals`: turned round only between values whose 95 % intervals overlap."
        parts += ["## Findings", told, markdown.table(["statement", "holds", "measured"], rows).rstrip()]
    if measured.failures:
        parts += ["## Failed", "\n".join(f"- {name}: {why}" for name, why in measured.failures.items())]
    if missing := measured.missing():
        parts += ["## Not measured", "\n".join(f"- {name}" for name in missing)]
    return "\n\n".join(parts) + "\n"


def _section(measured: Measured, section: str) -> list[str]:
    parts = [f"## {section}", _lines(f"Model `{measured.table.sections[section]}`. {_floor_text(measured, section)}")]
    parts += ["Noise error (mean squared error of the predicted noise), in thousandths:"]
    parts.append(_matrix(measured, section, lambda result: _short(1000 * result.value("noise_error"))))
    parts += ["PSNR in dB, with the half-width of its 95 % interval:"]
    parts.append(_matrix(measured, section, _psnr))
    parts += ["Size against float32:"]
    parts.append(_matrix(measured, section, lambda result: f"{result.value('size_ratio'):.3f}"))
    return parts + _bands(measured, section) + _headlines(measured, section)


def _matrix(measured: Measured, section: str, text: Callable[[Result], str]) -> str:
    table, ranked = measured.table, measured.ranked()
    cells = {(cell.row, cell.column): cell for cell in table.cells if cell.section == section}
    rows = []
    for row in table.rows(section):
        line = [row]
        for column in table.columns(section):
            cell = cells.get((row, column))
            result = None if cell is None else ranked.get(key(cell))
            line.append("" if result is None else text(result))
        rows.append(line)
    return _grid(["", *table.columns(section)], rows)


def _psnr(result: Result) -> str:
    metric = result.find("psnr")
    assert metric is not None
    return f"{metric.value:.1f} ± {(metric.spread['ci95_high'] - metric.spread['ci95_low']) / 2:.1f}"


def _floor_text(measured: Measured, section: str) -> str:
    metrics = [m for m in measured.full.get(section, []) if "floor" in m.labels]
    found = {(m.name, m.labels["floor"]): m for m in metrics}
    floors = [
        f"{floor}: noise error {found['noise_error', floor].value:.2g} (n {found['noise_error', floor].n}), "
        f"PSNR {found['psnr', floor].value:.0f} dB (n {found['psnr', floor].n})"
        for floor in dict.fromkeys(m.labels["floor"] for m in metrics)
    ]
    return f"Noise floor, full precision against itself: {'; '.join(floors)}; 200 dB: identical." if floors else ""


def _bands(measured: Measured, section: str) -> list[str]:
    """Noise error by noise level, of the column every table has first among per-channel ones."""
    table = measured.table
    column = "channel" if "channel" in table.columns(section) else table.columns(section)[0]
    rows: list[list[str]] = []
    header: list[str] = []
    for cell in table.cells:
        result = measured.ranked().get(key(cell))
        if cell.section != section or cell.column != column or result is None:
            continue
        bands = [m for m in result.metrics if m.name == "noise_error" and "band" in m.labels]
        header = [f"sigma {float(m.labels['sigma_low']):.2g} to {float(m.labels['sigma_high']):.2g}" for m in bands]
        rows.append([cell.row, *(_short(1000 * m.value) for m in bands)])
    return [f"Noise error by noise level, in thousandths, column {column}:", _grid(["", *header], rows)] if rows else []


def _headlines(measured: Measured, section: str) -> list[str]:
    rows = []
    for cell in measured.table.cells:
        result = measured.results.get(key(cell))
        if cell.section != section or result is None or result.find("class_accuracy") is None:
            continue
        rows.append([f"{cell.row}, {cell.column}", *_headline_row(measured, cell, result)])
    if not rows:
        return []
    title = f"Headline rows, {measured.protocol.headline_images:,} images; ✓ marks what is within noise:"
    first = _full_precision_rows(measured, section)
    columns = ["", "class accuracy", "drop in points", "Fréchet distance", "increase"]
    return [title, _grid(columns, [*first, *rows])]


def _headline_row(measured: Measured, cell: Cell, result: Result) -> list[str]:
    def judged(name: str, factor: float = 1) -> str:
        verdict = measured.verdict(cell, name)
        return f"{factor * result.value(name):.2f}" + (" ✓" if verdict is not None and verdict.within else "")

    return [
        f"{100 * result.value('class_accuracy'):.1f} %",
        judged("class_accuracy_drop", 100),
        f"{result.value('frechet_distance'):.2f}",
        judged("frechet_increase"),
    ]


def _full_precision_rows(measured: Measured, section: str) -> list[list[str]]:
    """Full precision from the noise of the cells, and its range over the seeds it is judged by."""
    rows = []
    paired = {
        metric.name: metric.value
        for (where, *_), result in measured.results.items()
        for metric in result.metrics
        if where == section and metric.artefact == "reference" and not metric.labels
    }
    if "class_accuracy" in paired:
        rows.append(
            ["full precision", f"{100 * paired['class_accuracy']:.1f} %", "", f"{paired['frechet_distance']:.2f}", ""]
        )
    accuracy = measured.full_values(section, "class_accuracy")
    distance = measured.full_values(section, "frechet_distance")
    if accuracy and distance:
        rows.append(
            [
                f"full precision, lowest and highest of {len(accuracy)} seeds",
                f"{100 * min(accuracy):.1f} to {100 * max(accuracy):.1f} %",
                "",
                f"{min(distance):.2f} to {max(distance):.2f}",
                "",
            ]
        )
    return rows


def _short(value: float) -> str:
    """Three significant digits, without a power of ten where a reader can do without."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - len(f"{abs(value):.0f}") + 1) if abs(value) >= 1 else None
        return f"{value:.{digits}f}" if digits is not None else f"{value:.3g}"
    return f"{value:.1e}"


def _lines(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    """A table of one name column and numbers."""
    return markdown.table(columns, rows, range(1, len(columns))).rstrip()
