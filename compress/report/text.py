"""Plain text for terminals: the table of a comparison, and the summary at the end of a run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from compress.report.compare import ComparedRun, Comparison
from compress.report.model import Metric, Report
from compress.report.numbers import MISSING, decimals_for, plain, shown, spread_of
from compress.report.view import artefacts_of, main_rows, verdict

_GAP = "  "
_HEADS = {
    "size_bytes": ("size", "MB"),
    "size_ratio": ("size", "ratio"),
    "psnr": ("psnr", "dB"),
    "class_accuracy": ("class", "accuracy"),
    "class_accuracy_drop": ("", "drop"),
    "alignment": ("", "alignment"),
    "alignment_drop": ("", "drop"),
    "frechet_distance": ("Fréchet", "distance"),
    "latency_ms": ("time", "ms"),
}


class _Column(NamedTuple):
    heads: tuple[str, str]
    cells: list[str]
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(len, (*self.heads, *self.cells)), default=0)


def comparison_text(comparison: Comparison, width: int = 100) -> str:
    """A table at most `width` columns wide as far as the numbers allow: long run names go over several lines."""
    rows = [*([comparison.reference] if comparison.reference else []), *comparison.runs]
    columns = [_Column(("weights/", "activations"), [_formats(row) for row in rows], right=False)]
    for name in comparison.columns():
        if name in _HEADS:
            columns.append(_Column(_HEADS[name], [_number(name, row.metrics.get(name)) for row in rows]))
    columns.append(_Column(("", "gates"), [_gates(row) for row in rows]))
    marks = _Column(("", ""), ["".join(front[0].upper() for front in row.fronts) for row in rows], right=False)
    taken = sum(len(_GAP) + column.width for column in columns) + (marks.width + 1 if marks.width else 0)
    room = max(width - taken, 12)
    names = [_wrapped(row.run, room) for row in rows]
    run_width = max(3, *(len(line) for lines in names for line in lines))
    lines = []
    for index, head in enumerate(("run", "")):
        lines.append(_line(marks, "", run_width, head, [(c, c.heads[index]) for c in columns]))
    lines.append(
        "─" * len(_line(marks, "", run_width, "", [(c, c.heads[0].ljust(c.width)) for c in columns], keep=True))
    )
    for index, (first, *more) in enumerate(names):
        lines.append(_line(marks, marks.cells[index], run_width, first, [(c, c.cells[index]) for c in columns]))
        lines += [_line(marks, "", run_width, rest, []) for rest in more]
    return "\n".join([*lines, *_footnotes(comparison, width)]) + "\n"


def _wrapped(name: str, room: int) -> list[str]:
    """The name in lines of at most `room` characters, broken after hyphens and the like where it has them."""
    lines = [""]
    for piece in re.findall(r"[^-_./ ]*[-_./ ]?", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > room:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1]) > room:
            lines[-1:] = [lines[-1][:room], lines[-1][room:]]
    return lines


def _line(
    marks: _Column, mark: str, run_width: int, run: str, cells: Sequence[tuple[_Column, str]], keep: bool = False
) -> str:
    start = f"{mark:<{marks.width}} " if marks.width else ""
    parts = [f"{cell:>{column.width}}" if column.right else f"{cell:<{column.width}}" for column, cell in cells]
    line = start + _GAP.join([f"{run:<{run_width}}", *parts])
    return line if keep else line.rstrip()


def _formats(row: ComparedRun) -> str:
    if row.weights == MISSING and row.activations == MISSING:
        return row.stages.partition(",")[0] or MISSING
    return f"{row.weights}/{row.activations}"


def _number(name: str, metric: Metric | None) -> str:
    if metric is None:
        return MISSING
    if name == "size_bytes":
        return plain(metric.value / 1e6)
    if name == "size_ratio":
        return plain(metric.value, 3)
    spread = spread_of(metric.value, metric.spread)
    if name in ("class_accuracy", "alignment") and spread is not None:
        half = (spread.high - spread.low) / 2
        decimals = decimals_for(metric.value, half)
        return f"{plain(metric.value, decimals)}±{plain(half, decimals)}"
    return shown(metric).value.removesuffix(" dB").removesuffix(" ms")


def _gates(row: ComparedRun) -> str:
    if not row.gates:
        return MISSING
    met = row.gates - len(row.missed)
    return f"{met}/{row.gates}" + (" ✗" if row.missed else " ✓")


def _footnotes(comparison: Comparison, width: int) -> list[str]:
    notes = []
    fronts = {front for run in comparison.runs for front in run.fronts}
    quality = (comparison.quality or "").replace("_", " ")
    words = {
        "size": f"S  no run is smaller and has better {quality}",
        "latency": f"L  no run is faster and has better {quality}",
    }
    if fronts:
        notes += ["", *(text for front, text in words.items() if front in fronts)]
    timed = {run.metrics["latency_ms"].artefact for run in comparison.runs if "latency_ms" in run.metrics}
    if timed:
        notes.append(f"Times are of {' or '.join(sorted(timed, reverse=True))}; ± is half of the 95 % interval.")
    for run in comparison.runs:
        notes += (
            textwrap.wrap(f"✗ {run.run}: {'; '.join(run.missed)}", width, subsequent_indent="  ") if run.missed else []
        )
    for warning in comparison.warnings:
        notes += textwrap.wrap(f"! {warning}", width, subsequent_indent="  ")
    return notes


def summary_text(report: Report, width: int = 100) -> str:
    """What to print when a run ends: the verdict, missed gates, and every main value per artefact."""
    result = verdict(report.gates)
    lines = [f"{report.name}: {result.title}"]
    lines += [
        line for gate in result.missed for line in textwrap.wrap(f"✗ {gate.message}", width, subsequent_indent="  ")
    ]
    present = artefacts_of(report)
    rows = [row for row in main_rows(report) if not row.labels]
    if rows:
        columns = [_Column(("", "metric"), [row.name for row in rows], right=False)]
        for artefact in present:
            cells = [row.cells.get(artefact) for row in rows]
            columns.append(_Column(("", artefact), [shown(cell).value if cell else MISSING for cell in cells]))
            spreads = [shown(cell).spread.replace(" to ", "…") if cell else "" for cell in cells]
            columns.append(_Column(("", ""), spreads, right=False))
        table = [_GAP.join(_pad(c, c.heads[1]) for c in columns), ""]
        table += [_GAP.join(_pad(c, c.cells[index]) for c in columns) for index in range(len(rows))]
        table[1] = "─" * max(len(line.rstrip()) for line in table)
        lines += ["", *(line.rstrip() for line in table), ""]
    lines += [line for w in report.warnings for line in textwrap.wrap(f"! {w}", width, subsequent_indent="  ")]
    return "\n".join(lines) + "\n"


def _pad(column: _Column, cell: str) -> str:
    return f"{cell:>{column.width}}" if column.right else f"{cell:<{column.width}}"
