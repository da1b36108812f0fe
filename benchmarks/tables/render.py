"""A measured table as JSON for programs and Markdown for people; both from the same numbers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables.table import Cell, Finding, Result, Table
from compress.evaluate.protocol import Protocol
from compress.evaluate.within_noise import NoiseVerdict, within_noise
from compress.report.model import Metric


@dataclass
class Measured:
    """A table and what is known of it so far.

    Attributes:
        results: cells by (section, row, column).
        full: metrics of full precision by section.
        failures: why a cell could not be measured, by (section, row, column).
        facts: machine, versions, commit, seconds.
    """

    table: Table
    protocol: Protocol
    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    full: dict[str, list[Metric]] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """The table's own statements, checked on the cells at hand."""
        return self.table.findings(self.results)

    def full_values(self, section: str, name: str) -> list[float]:
        """Values of a full-precision metric at every seed it was measured at."""
        return [m.value for m in self.full.get(section, []) if m.name == name and set(m.labels) == {"seed"}]

    def verdict(self, cell: Cell, difference: str, of: str) -> NoiseVerdict | None:
        """Whether the cell's `difference` metric is within the noise of full precision's `of`; None if unmeasured."""
        result, values = self.results.get(key(cell)), self.full_values(cell.section, of)
        metric = None if result is None else result.find(difference)
        if metric is None or len(values) < self.protocol.seeds:
            return None
        return within_noise(metric.value, (metric.spread["ci95_low"], metric.spread["ci95_high"]), values)


JUDGED = {
    "denoising_loss_increase": "denoising_loss",
    "class_accuracy_drop": "class_accuracy",
    "frechet_increase": "frechet_distance",
}
"""Differences that are judged against noise, and the full-precision metric whose spread over seeds judges them."""


def key(cell: Cell) -> tuple[str, str, str]:
    """Where a cell's result is kept."""
    return (cell.section, cell.row, cell.column)


def to_json(measured: Measured) -> str:
    """Everything measured, with unit, n, seed and spread."""
    table = measured.table
    cells = []
    for cell in table.cells:
        result = measured.results.get(key(cell))
        if result is None and key(cell) not in measured.failures:
            continue
        verdicts = {name: measured.verdict(cell, name, of) for name, of in JUDGED.items()}
        cells.append(
            {
                "section": cell.section,
                "row": cell.row,
                "column": cell.column,
                "stages": [dict(stage) for stage in cell.stages],
                "metrics": [] if result is None else [m.model_dump(mode="json") for m in result.metrics],
                "within_noise": {
                    name: {**verdict._asdict(), "within": verdict.within}
                    for name, verdict in verdicts.items()
                    if verdict is not None
                },
                "failure": measured.failures.get(key(cell), ""),
            }
        )
    data = {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "protocol": measured.protocol.model_dump(mode="json"),
        "facts": measured.facts,
        "sections": dict(table.sections),
        "full_precision": {s: [m.model_dump(mode="json") for m in found] for s, found in measured.full.items()},
        "cells": cells,
        "findings": [finding._asdict() for finding in measured.findings()],
        "missing": [cell.name for cell in table.cells if key(cell) not in measured.results],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def to_markdown(measured: Measured) -> str:
    """The table for people: a matrix of each ranking metric a section, headline rows, floors, findings."""
    table, p = measured.table, measured.protocol
    sampler = f"{p.sampler.kind.upper()}, {p.sampler.steps} steps, guidance {p.sampler.guidance_scale:g}"
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.facts.items())
    parts = [
        f"# {table.title}",
        table.note,
        _lines(
            f"Measured by `python -m benchmarks.tables {table.name}` as docs/evaluation.md lays down: noise error on "
            f"{p.pairs:,} stored pairs, PSNR of {p.images} image pairs ({sampler}), denoising loss on {p.noised:,} "
            f"noised images. Intervals are 95 % bootstrap. Seed 0. {facts}."
        ),
    ]
    for section in table.sections:
        if any(cell.section == section and key(cell) in measured.results for cell in table.cells):
            parts += _section(measured, section)
    if found := measured.findings():
        rows = [[f.statement, "**no**" if f.holds == "no" else f.holds, f.evidence] for f in found]
        told = "`within intervals`: turned round only between values whose 95 % intervals overlap."
        parts += ["## Findings", told, _grid(["statement", "holds", "measured"], rows, ("---", "---", "---"))]
    if missing := [cell.name for cell in table.cells if key(cell) not in measured.results]:
        reasons = [f"- {name}" + _reason(measured, name) for name in missing]
        parts += ["## Not measured", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


def _reason(measured: Measured, name: str) -> str:
    return next((f": {why}" for where, why in measured.failures.items() if "/".join(where) == name), "")


def _section(measured: Measured, section: str) -> list[str]:
    parts = [f"## {section}", _lines(f"Model `{measured.table.sections[section]}`. {_floor_text(measured, section)}")]
    parts += ["Noise error (mean squared error of the predicted noise), in thousandths:"]
    parts.append(_matrix(measured, section, lambda cell, result: _noise(result)))
    parts += ["PSNR in dB, with the half-width of its interval:"]
    parts.append(_matrix(measured, section, lambda cell, result: _psnr(result)))
    parts += ["Increase of the denoising loss in percent; ✓ marks what is within noise:"]
    parts.append(_matrix(measured, section, lambda cell, result: _loss(measured, cell, result)))
    parts += ["Size against float32:"]
    parts.append(_matrix(measured, section, lambda cell, result: f"{result.value('size_ratio'):.3f}"))
    return parts + _bands(measured, section) + _headlines(measured, section)


def _matrix(measured: Measured, section: str, text: Callable[[Cell, Result], str]) -> str:
    table = measured.table
    cells = {(cell.row, cell.column): cell for cell in table.cells if cell.section == section}
    rows = []
    for row in table.rows(section):
        line = [row]
        for column in table.columns(section):
            cell = cells.get((row, column))
            result = None if cell is None else measured.results.get(key(cell))
            line.append("" if cell is None or result is None else text(cell, result))
        rows.append(line)
    return _grid(["", *table.columns(section)], rows)


def _noise(result: Result) -> str:
    return _short(1000 * result.value("noise_error"))


def _psnr(result: Result) -> str:
    metric = result.find("psnr")
    assert metric is not None
    return f"{metric.value:.1f} ± {(metric.spread['ci95_high'] - metric.spread['ci95_low']) / 2:.1f}"


def _loss(measured: Measured, cell: Cell, result: Result) -> str:
    values = measured.full_values(cell.section, "denoising_loss")
    if not values:
        return ""
    verdict = measured.verdict(cell, "denoising_loss_increase", "denoising_loss")
    mark = " ✓" if verdict is not None and verdict.within else ""
    return _short(100 * result.value("denoising_loss_increase") / values[0]) + mark


def _floor_text(measured: Measured, section: str) -> str:
    found = {
        (m.name, m.labels.get("floor", "")): m.value for m in measured.full.get(section, []) if "floor" in m.labels
    }
    if not found:
        return ""
    floors = [
        f"{floor}: noise error {found['noise_error', floor]:.2g}, PSNR {found['psnr', floor]:.0f} dB"
        for floor in dict.fromkeys(floor for name, floor in found if name == "noise_error")
    ]
    losses = measured.full_values(section, "denoising_loss")
    text = f"Noise floor of full precision against itself: {'; '.join(floors)} (200 dB: identical). "
    if len(losses) > 1:
        mean = sum(losses) / len(losses)
        deviation = (sum((x - mean) ** 2 for x in losses) / (len(losses) - 1)) ** 0.5
        text += f"Its denoising loss over {len(losses)} seeds: {mean:.5f}, standard deviation {deviation:.5f}."
    return text


def _bands(measured: Measured, section: str) -> list[str]:
    """Noise error by noise level, of the column every table has first among per-channel ones."""
    table = measured.table
    column = "channel" if "channel" in table.columns(section) else table.columns(section)[0]
    rows: list[list[str]] = []
    header: list[str] = []
    for cell in table.cells:
        result = measured.results.get(key(cell))
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
        verdict = measured.verdict(cell, name, JUDGED[name])
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


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], rules: Sequence[str] = ()) -> str:
    rules = rules or ["---", *["---:"] * (len(columns) - 1)]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(rules) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
