"""A measured table as JSON for programs and Markdown for people; both from the same numbers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from statistics import fmean

from benchmarks.tables.measured import JUDGED, Measured, key
from benchmarks.tables.table import Cell, Result, Table
from compress.report import markdown


def to_json(measured: Measured) -> str:
    """Everything measured, with unit, n, seed and spread."""
    table = measured.table
    cells = []
    for cell in table.cells:
        result = measured.results.get(key(cell), Result(()))
        metrics = result.repeats.get(cell.seed, ()) if cell.seed else result.metrics
        if not metrics:
            continue
        verdicts = {} if cell.seed else {name: measured.verdict(cell, name) for name in JUDGED}
        cells.append(
            {
                "section": cell.section,
                "row": cell.row,
                "column": cell.column,
                "seed": cell.seed,
                "calibration": dict(cell.calibration),
                "stages": [dict(stage) for stage in cell.stages],
                "metrics": [m.model_dump(mode="json") for m in metrics],
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
            f"{p.pairs:,} stored pairs, PSNR of {p.images} image pairs ({sampler}). {_seeds(table)}; every interval is "
            f"in {table.name}.json. {measured.seconds / 60:.0f} minutes of work, shared by the processes. {facts}."
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
    parts.append(_matrix(measured, section, lambda result: _of_seeds(result, "noise_error", 1000)))
    if measured.table.baseline in measured.table.rows(section):
        parts += [f"Share of the noise error of `{measured.table.baseline}` that is removed, in percent:"]
        parts.append(_removed(measured, section))
    parts += ["PSNR in dB, with the half-width of its 95 % interval:"]
    parts.append(_matrix(measured, section, _psnr))
    parts += _temporal(measured, section)
    if any(result.find("concatenation_error") for place, result in measured.ranked().items() if place[0] == section):
        parts += ["Relative error of the layers on a skip concatenation, fed as in full precision, in thousandths:"]
        parts.append(_matrix(measured, section, lambda result: _of_seeds(result, "concatenation_error", 1000)))
    parts += ["Size against float32:"]
    parts.append(_matrix(measured, section, lambda result: f"{result.value('size_ratio'):.3f}"))
    return parts + _bands(measured, section) + _headlines(measured, section)


def _temporal(measured: Measured, section: str) -> list[str]:
    """Error of what the blocks are told of timestep and class, where anyone measured it."""
    places = [place for place in measured.ranked() if place[0] == section]
    if not any(measured.results[place].find("temporal_error") for place in places):
        return []
    same = {"of": "nearest_neighbour_identity", "within": "0"}
    return [
        "Temporal error (relative error of the projected embeddings of timestep and class), in thousandths:",
        _matrix(measured, section, lambda result: _of_seeds(result, "temporal_error", 1000)),
        "Embeddings that stay nearest to their own timestep, in percent:",
        _matrix(measured, section, lambda result: _of_seeds(result, "temporal_error", 100, **same)),
    ]


def _of_seeds(result: Result, name: str, factor: float, **labels: str) -> str:
    """The metric's mean over the seeds with its range; empty where it was not measured."""
    values = [factor * value for value in result.values(name, **labels)]
    if not values:
        return ""
    spread = f" ({_short(min(values))}-{_short(max(values))})" if len(values) > 1 else ""
    return _short(fmean(values)) + spread


def _removed(measured: Measured, section: str) -> str:
    """1 - error / error of the baseline in the same column, of the means over the seeds, in percent."""
    ranked, table = measured.ranked(), measured.table
    rows = []
    for row in table.rows(section):
        if row == table.baseline:
            continue
        line = [row]
        for column in table.columns(section):
            found, base = ranked.get((section, row, column)), ranked.get((section, table.baseline, column))
            if found is None or base is None:
                line.append("")
            else:
                line.append(f"{100 * (1 - found.mean('noise_error') / base.mean('noise_error')):.1f}")
        rows.append(line)
    return _grid(["", *table.columns(section)], rows)


def _seeds(table: Table) -> str:
    seeds = sorted({cell.seed for cell in table.cells})
    if len(seeds) == 1:
        return "Seed 0"
    return f"Seeds {', '.join(map(str, seeds))} where a range is given (mean, lowest to highest), else seed 0"


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
    columns = table.columns(section)
    column = next((name for name in (table.band_column, "channel") if name in columns), columns[0])
    rows: list[list[str]] = []
    header: list[str] = []
    for cell in table.cells:
        result = measured.ranked().get(key(cell))
        if cell.section != section or cell.column != column or cell.seed or result is None:
            continue
        bands = [m for m in result.metrics if m.name == "noise_error" and "band" in m.labels]
        header = [f"sigma {float(m.labels['sigma_low']):.2g} to {float(m.labels['sigma_high']):.2g}" for m in bands]
        rows.append([cell.row, *(_short(1000 * m.value) for m in bands)])
    return [f"Noise error by noise level, in thousandths, column {column}:", _grid(["", *header], rows)] if rows else []


def _headlines(measured: Measured, section: str) -> list[str]:
    rows = []
    for cell in measured.table.cells:
        result = measured.results.get(key(cell))
        if cell.section != section or cell.seed or result is None or result.find("class_accuracy") is None:
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
