"""Markdown of a report and of a comparison: tables that read well in a repository, no pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compress.report.gates import bounds_text
from compress.report.model import Artefact, Metric, Report, Table
from compress.report.numbers import MISSING, cell_text, fact_texts, measured_text, seconds_text, shown, spread_of
from compress.report.view import (
    artefacts_of,
    bands,
    breakdowns,
    class_bytes,
    floors,
    formats_of,
    main_rows,
    methods_of,
    verdict,
)

_SPECIAL = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "} | {mark: f"\\{mark}" for mark in "\\|*`["}
)
Row = Sequence[str]


def report_markdown(report: Report) -> str:
    """The whole report.md."""
    present = artefacts_of(report)
    parts = [
        _header(report),
        _section("Gates", _gates(report)),
        _section("Metrics", _metrics(report, present)),
        _section("Bytes by tensor class", _table(class_bytes(report))),
        _section("Noise error per band", _bands(report, present)),
        _section("Noise floor", _floors(report)),
        *(_section(table.title, _table(table)) for table in report.tables if table.kind in ("table", "noise_floor")),
        *(_section(*part) for part in _breakdowns(report, present)),
        _section("Stages", _stages(report)),
        _section("Model", _facts(report.model)),
        _section("Machine", _facts(report.machine)),
        *(_section(table.title, _folded(table)) for table in report.tables if table.kind == "layers"),
    ]
    return "\n".join(part for part in parts if part)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return text.translate(_SPECIAL)


def code(text: str) -> str:
    """A name in code style; a backtick or bar inside would end the span or the cell, so such names are escaped text."""
    return f"`{text}`" if text and not set("|`\n\r") & set(text) else escape(text)


def table(columns: Row, rows: Iterable[Row], numbers: Iterable[int] = ()) -> str:
    """A Markdown table whose columns numbered in `numbers` are flush right; cells are Markdown already."""
    right = set(numbers)
    rule = ["---:" if index in right else "---" for index in range(len(columns))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, rule, *rows))


def value_text(metric: Metric | None) -> str:
    """A measured number with its spread and n: `0.973 (0.963 to 0.983, n 1,000)`."""
    if metric is None:
        return MISSING
    text, spread = shown(metric), spread_of(metric.value, metric.spread)
    around = [text.spread if spread is None or spread.kind == "95 % CI" else f"{spread.kind} {text.spread}"]
    around += [f"n {metric.n:,}"] if metric.n > 1 else []
    inside = ", ".join(words for words in around if words)
    return f"{text.value} ({inside})" if inside else text.value


def _section(title: str, body: str) -> str:
    return f"## {escape(title)}\n\n{body}" if body else ""


def _header(report: Report) -> str:
    result = verdict(report.gates)
    lines = [f"# {escape(report.name)}", "", f"**{result.title}.**", ""]
    lines += [f"- {escape(gate.message)}" for gate in result.missed]
    lines += [""] if result.missed else []
    weights, activations = formats_of(report.recipe)
    facts = {"model": report.model.get("source") or report.model.get("name"), "stages": methods_of(report.recipe)}
    facts |= {"weights": weights, "activations": activations} if weights != MISSING else {}
    words = [f"{name} {escape(str(value))}" for name, value in facts.items() if value]
    lines.append(", ".join([*words, f"compress {escape(report.compress_version)}", escape(report.created)]) + ".")
    lines.append("Pictures and charts are in report.html; numbers for programs are in report.json.")
    if report.warnings:
        lines += ["", "Warnings:", "", *(f"- {escape(warning)}" for warning in report.warnings)]
    return "\n".join(lines) + "\n"


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    rows = []
    for gate in report.gates:
        labels = "".join(f", {key} {value}" for key, value in gate.labels.items())
        allowed = bounds_text(gate.minimum, gate.maximum)
        state = "met" if gate.passed else "**missed**"
        rows.append([state, code(gate.metric) + escape(labels), gate.artefact, measured_text(gate.value), allowed])
    return table(("verdict", "gate", "artefact", "measured", "allowed"), rows, (3,))


def _metrics(report: Report, present: Sequence[Artefact]) -> str:
    rows = [
        [code(row.name) + "".join(f" against {label}" for label in row.labels), *_cells(row.cells, present)]
        for row in main_rows(report)
    ]
    if not rows:
        return ""
    note = "In brackets: the 95 % confidence interval, or the spread named, and n, the samples or repetitions.\n"
    return table(("metric", *present), rows, range(1, len(present) + 1)) + "\n" + note


def _cells(cells: Mapping[Artefact, Metric], present: Sequence[Artefact]) -> list[str]:
    return [value_text(cells.get(artefact)) for artefact in present]


def _bands(report: Report, present: Sequence[Artefact]) -> str:
    found = bands(report)
    columns = [artefact for artefact in present if any(artefact in band.cells for band in found)]
    names = ["floor" if artefact == "reference" else artefact for artefact in columns]
    rows = [[escape(band.name), band.range_text or MISSING, *_cells(band.cells, columns)] for band in found]
    return table(("band", "sigma", *names), rows, range(1, len(columns) + 2)) if found else ""


def _floors(report: Report) -> str:
    rows = [[code(m.name), escape(", ".join(m.labels.values())), value_text(m)] for m in floors(report)]
    return table(("metric", "between", "reference against itself"), rows, (2,)) if rows else ""


def _breakdowns(report: Report, present: Sequence[Artefact]) -> list[tuple[str, str]]:
    parts = []
    for found in breakdowns(report):
        columns = [artefact for artefact in present if any(artefact in row.cells for row in found.rows)]
        rows = [[*map(escape, row.labels), *_cells(row.cells, columns)] for row in found.rows]
        keys = [key.replace("_", " ") for key in found.keys]
        first = len(keys)
        body = table((*map(escape, keys), *columns), rows, range(first, first + len(columns)))
        parts.append((f"{found.name} by {' and '.join(keys)}", body))
    return parts


def _table(data: Table | None) -> str:
    if data is None or not data.columns:
        return ""
    width = len(data.columns)
    columns = [[row[i] for row in data.rows if i < len(row) and row[i] is not None] for i in range(width)]
    numbers = [i for i, cells in enumerate(columns) if cells and all(isinstance(c, (int, float)) for c in cells)]
    rows = [
        [
            MISSING if cell is None else escape(cell_text(cell, name))
            for cell, name in zip(row, data.columns, strict=False)
        ]
        for row in data.rows
    ]
    note = f"\n{escape(data.note)}\n" if data.note else ""
    return table([escape(name) for name in data.columns], rows, numbers) + note


def _folded(data: Table) -> str:
    """A long table, folded away where Markdown is rendered as HTML."""
    body = _table(data)
    return f"<details><summary>{len(data.rows)} rows</summary>\n\n{body}\n</details>\n" if body else ""


def _stages(report: Report) -> str:
    rows = []
    for number, stage in enumerate(report.stages, start=1):
        facts = ", ".join(f"{name} {value}" for name, value in fact_texts(stage.facts))
        seconds = seconds_text(stage.seconds) + (" (earlier run)" if stage.cached else "")
        rows.append([str(number), escape(stage.kind), seconds, escape(facts)])
    return table(("", "stage", "time", "facts"), rows, (2,)) if rows else ""


def _facts(facts: Mapping[str, str | float | int | None]) -> str:
    rows = [[escape(name), escape(value)] for name, value in fact_texts(facts)]
    return table(("fact", "value"), rows) if rows else ""
