"""Tables as the HTML template wants them: columns with alignment, cells as text, data bars, lines of YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic_core import to_jsonable_python

from compress.report.gates import bounds_text
from compress.report.model import Artefact, GateResult, Metric, Table
from compress.report.numbers import MISSING, cell_text, measured_text, shown, spread_of
from compress.report.view import Band, Breakdown

TALL = 14
"""Rows from which a table scrolls in a window of its own."""
_BAR = 64.0


class Column(NamedTuple):
    """A table column and whether it is set flush right."""

    name: str
    number: bool = False


class Cell(NamedTuple):
    """A table cell: its text, a smaller line below, a class of the style sheet, and the length of its data bar."""

    text: str
    small: str = ""
    css: str = ""
    tip: str = ""
    bar: float | None = None


class Sheet(NamedTuple):
    """A table ready for the template; links lead to its `anchor`, if it has one."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""
    tall: bool = False
    wide: bool = False
    anchor: str = ""


def table_sheet(table: Table) -> Sheet:
    """A report's table: number columns flush right, columns whose name speaks of errors with a bar in each cell."""
    width = len(table.columns)
    numeric = [_is_numeric([row[i] for row in table.rows if i < len(row)]) for i in range(width)]
    longest = [_longest_bar(table, i) if numeric[i] else 0.0 for i in range(width)]
    rows = [
        [_table_cell(value, table.columns[i], numeric[i], longest[i]) for i, value in enumerate(row[:width])]
        for row in table.rows
    ]
    columns = [Column(name, number) for name, number in zip(table.columns, numeric, strict=True)]
    return Sheet(table.title, columns, rows, table.note, len(rows) > TALL, width > 5)


def _is_numeric(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, (int, float)) for value in present)


def _longest_bar(table: Table, column: int) -> float:
    """The largest value of a column that gets bars, 0 for one that does not."""
    if "error" not in table.columns[column].lower():
        return 0.0
    values = [row[column] for row in table.rows]
    return max((float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)), default=0.0)


def _table_cell(value: str | float | int | None, column: str, numeric: bool, longest: float) -> Cell:
    text = MISSING if value is None else cell_text(value, column)
    bar = None
    if longest > 0 and isinstance(value, (int, float)) and math.isfinite(value):
        bar = round(_BAR * min(max(value / longest, 0.0), 1.0), 2)
    return Cell(text, css="number" if numeric else "", bar=bar)


def metric_cell(metric: Metric | None) -> Cell:
    """A measured number: the value, below it its interval and n, and the seed as a tooltip."""
    if metric is None:
        return Cell(MISSING, css="number muted")
    text, spread = shown(metric), spread_of(metric.value, metric.spread)
    small = text.spread if spread is None or spread.kind == "95 % CI" else f"{spread.kind} {text.spread}"
    count = f"n {metric.n:,}" if metric.n > 1 else ""
    tip = f"{metric.value!r}{f', seed {metric.seed}' if metric.seed is not None else ''}"
    return Cell(text.value, " · ".join(words for words in (small, count) if words), "number", tip)


def metric_cells(cells: Mapping[Artefact, Metric], artefacts: Sequence[Artefact]) -> list[Cell]:
    """One cell per artefact."""
    return [metric_cell(cells.get(artefact)) for artefact in artefacts]


def breakdown_sheet(found: Breakdown, artefacts: Sequence[Artefact]) -> Sheet:
    """A metric per label, a row per combination."""
    present = [artefact for artefact in artefacts if any(artefact in row.cells for row in found.rows)]
    columns = [*(Column(key.replace("_", " ")) for key in found.keys), *(Column(a, number=True) for a in present)]
    rows = [[*(Cell(label) for label in row.labels), *metric_cells(row.cells, present)] for row in found.rows]
    title = f"{found.name} by {' and '.join(key.replace('_', ' ') for key in found.keys)}"
    return Sheet(title, columns, rows, tall=len(rows) > TALL)


def band_sheet(found: Sequence[Band], artefacts: Sequence[Artefact]) -> Sheet:
    """The noise error per band in numbers, for the artefacts that have it."""
    artefacts = [artefact for artefact in artefacts if any(artefact in band.cells for band in found)]
    names = ["floor" if artefact == "reference" else artefact for artefact in artefacts]
    columns = [Column("band"), Column("sigma", True), *(Column(name, True) for name in names)]
    rows = [
        [Cell(band.name), Cell(band.range_text, css="number"), *metric_cells(band.cells, artefacts)] for band in found
    ]
    return Sheet("Noise error per band", columns, rows, tall=len(rows) > TALL, wide=True)


def floor_sheet(floors: Sequence[Metric]) -> Sheet:
    """What the reference differs by from itself."""
    columns = [Column("metric"), Column("between"), Column("reference against itself", True)]
    rows = [
        [Cell(metric.name, css="mono"), Cell(", ".join(metric.labels.values())), metric_cell(metric)]
        for metric in floors
    ]
    note = (
        "Rounding in another order already changes results this much; differences between models below it mean nothing."
    )
    return Sheet("Noise floor", columns, rows, note)


def gate_sheet(gates: Sequence[GateResult]) -> Sheet:
    """Every gate: its bound, the value and the verdict."""
    columns = [Column("verdict"), Column("gate"), Column("artefact"), Column("measured", True), Column("allowed")]
    rows = []
    for gate in gates:
        labels = ", ".join(f"{key} {value}" for key, value in gate.labels.items())
        state = Cell("✓ met", css="state met") if gate.passed else Cell("✕ missed", css="state missed")
        value = Cell(measured_text(gate.value), css="number", tip=repr(gate.value))
        allowed = Cell(bounds_text(gate.minimum, gate.maximum))
        rows.append([state, Cell(gate.metric, labels, "mono"), Cell(gate.artefact), value, allowed])
    return Sheet("Gates", columns, rows, anchor="gates")


class YamlLine(NamedTuple):
    """A line of YAML in three pieces, so that the key can be coloured."""

    lead: str
    key: str
    rest: str


def yaml_lines(data: Mapping[str, object]) -> list[YamlLine]:
    """The mapping as YAML, keys in their order, short values in braces."""
    import yaml

    if not data:
        return []
    plain = to_jsonable_python(dict(data), fallback=str)
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    lines = []
    for line in text.splitlines():
        match = re.match(r"^([\s-]*)([\w./-]+:)(\s.*)?$", line)
        lines.append(YamlLine(match[1], match[2], match[3] or "") if match else YamlLine(line, "", ""))
    return lines
