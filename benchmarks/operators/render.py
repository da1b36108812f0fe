"""The measured rows as JSON for programs and Markdown for people; both from the same numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import exp, log
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.operators.measure import LeftOut, Row
from compress.report.markdown import code, table
from compress.report.numbers import MISSING, fact_texts, plain

METHOD = (
    "Rows of one case were timed in one process, in turns, in rounds: a pause, one untimed call, then timed calls "
    "whose median is the round's sample. Times are medians over rounds, intervals quartiles over rounds. A ratio is "
    "the other's time over ours, the median over rounds: above 1 we are faster. GOP/s counts a multiplication and an "
    "addition as two; the limit is that of the processor's int8 dot products, measured before, in between and after. "
    "Inputs are normal random numbers; the error is that of the output against the float32 layer, the rounding of the "
    "format included; ours are checked against the reference backend besides, to 1e-5. Everyone takes float32 rows and "
    "gives float32 rows, but for those whose note says otherwise. The blocks of PixArt have the shapes of DiT-XL/2's."
)
HEADLINES = (("int4", 0, "exact"), ("int4", 128, "exact"), ("int8", 0, "exact"))
"""Our layouts whose ratios are shown case by case; the others are in the summary and in the JSON."""
SMALLEST_SUMMED = 64  # rows; below, layers wait for memory and are no measure of arithmetic


@dataclass
class Measured:
    """Everything a run found.

    Attributes:
        peaks: measurements of the processor's int8 limit in GOP/s, in order; empty where it cannot be measured.
        notes: what to know about a provider, by label.
    """

    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def peak_gops(self) -> float | None:
        return median(self.peaks) if self.peaks else None

    def finished_rows(self) -> list[Row]:
        """The rows with their fraction of the limit."""
        peak = self.peak_gops
        return [replace(row, peak_fraction=None if peak is None else row.gops / peak) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "machine": self.machine,
            "settings": self.settings,
            "method": METHOD,
            "peak_gops": self.peak_gops,
            "peak_gops_samples": self.peaks,
            "rows": [row.to_json() for row in self.finished_rows()],
            "notes": self.notes,
            "left_out": self.left_out.to_json(),
        }


class Ratio(NamedTuple):
    """How many times faster we are, and the quartiles of that over rounds."""

    value: float
    q1: float
    q3: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f} ({self.q1:.2f} to {self.q3:.2f})"


def ratio(ours: Row, peer: Row) -> Ratio:
    """Of two rows of one case."""
    each = [theirs / mine for mine, theirs in zip(ours.rounds_ms, peer.rounds_ms, strict=True)]
    q1, value, q3 = np.quantile(each, [0.25, 0.5, 0.75])
    return Ratio(float(value), float(q1), float(q3))


def label(row: Row) -> str:
    """As `Provider.label`."""
    if not row.provider.startswith("compress"):
        return row.provider
    return f"{row.provider} {row.format}{f' g{row.group}' if row.group else ''} {row.mode}"


def markdown(found: Measured) -> str:
    """The tables for people."""
    return "\n\n".join(_parts(found)) + "\n"


def _parts(found: Measured) -> Iterator[str]:
    rows = found.finished_rows()
    yield "# Low-bit operators beside other libraries"
    yield textwrap.fill(METHOD, 120)
    yield f"    {found.command}"
    yield _peak_text(found)
    for kind, title in (("qmatmul", "matmuls"), ("qconv2d", "convolutions")):
        chosen = [row for row in rows if row.case.startswith(kind)]
        if not chosen:
            continue
        yield f"## Summary of {title}\n\n{_summary_text(kind)}"
        yield _summary(chosen)
        for layout in HEADLINES:
            text = _ratios(chosen, layout)
            if text:
                name, group, mode = layout
                yield f"## {title.capitalize()}: ratios of `compress` {name}{f' g{group}' if group else ''} {mode}"
                yield text
    for name, chosen in _by_shape(rows):
        yield f"## {name}"
        yield _times(chosen)
    yield from _remarks(found, rows)
    facts = ", ".join(f"{name} {value}" for name, value in fact_texts(found.machine))
    yield "## Machine\n\n" + textwrap.fill(f"{facts}.", 120, break_on_hyphens=False)


def _peak_text(found: Measured) -> str:
    if found.peak_gops is None:
        return "The processor's int8 limit was not measured: our kernel library is not built here."
    each = ", ".join(f"{value:,.0f}" for value in found.peaks)
    return f"Measured int8 limit: {found.peak_gops:,.0f} GOP/s (single measurements {each})."


def _summary_text(kind: str) -> str:
    over = f" with {SMALLEST_SUMMED} rows or more" if kind == "qmatmul" else ""
    return textwrap.fill(
        f"Geometric mean of the ratios over all cases{over}, in brackets the smallest and the largest.", 120
    )


def _summary(rows: list[Row]) -> str:
    """Our layouts down, peers across."""
    large = [row for row in rows if row.m >= SMALLEST_SUMMED]
    mine = list(dict.fromkeys(label(row) for row in large if row.provider.startswith("compress")))
    peers = _peers(large)
    cells: dict[tuple[str, str], list[float]] = {}
    for _, group in groupby(large, key=lambda row: row.case):
        for ours, theirs in _pairs(list(group)):
            cells.setdefault((label(ours), theirs.provider), []).append(ratio(ours, theirs).value)
    body = [[code(name), *(_spread(cells.get((name, peer), [])) for peer in peers)] for name in mine]
    return table(["ours", *map(code, peers)], body, range(1, len(peers) + 1)).rstrip()


def _spread(values: list[float]) -> str:
    if not values:
        return MISSING
    mean = exp(sum(map(log, values)) / len(values))
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def _pairs(case: list[Row]) -> Iterator[tuple[Row, Row]]:
    for ours in case:
        if ours.provider.startswith("compress"):
            yield from ((ours, row) for row in case if not row.provider.startswith("compress"))


def _peers(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.provider for row in rows if not row.provider.startswith("compress")))


def _ratios(rows: list[Row], layout: tuple[str, int, str]) -> str:
    """Cases down, peers across, for one layout of `compress`."""
    peers, body = _peers(rows), []
    for name, group in groupby(rows, key=lambda row: row.case):
        case = list(group)
        mine = [r for r in case if r.provider == "compress" and (r.format, r.group, r.mode) == layout]
        for ours in mine:
            theirs = {row.provider: row for row in case}
            body.append(
                [
                    code(name.partition("/")[2]),
                    *(ratio(ours, theirs[p]).text if p in theirs else MISSING for p in peers),
                ]
            )
    return table(["case", *map(code, peers)], body, range(1, len(peers) + 1)).rstrip() if body else ""


def _by_shape(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for name, group in groupby(rows, key=lambda row: row.case.rpartition("/")[0]):
        yield name, list(group)


def _times(rows: list[Row]) -> str:
    """Providers down, numbers of rows across: milliseconds, quartiles, share of the limit."""
    sizes = list(dict.fromkeys(row.m for row in rows))
    cells = {(label(row), row.m): _time_text(row) for row in rows}
    errors = {label(row): row for row in rows}
    body = [
        [
            code(name) + ("" if not row.backend else f" ({row.backend})"),
            plain(row.relative_error, digits=2) + (" !" if any(r.suspicious for r in rows if label(r) == name) else ""),
            *(cells.get((name, m), MISSING) for m in sizes),
        ]
        for name, row in errors.items()
    ]
    head = ["provider", "error", *(f"m = {m:,}: ms (quartiles), share of the limit" for m in sizes)]
    return table(head, body, range(1, len(head))).rstrip()


def _time_text(row: Row) -> str:
    share = MISSING if row.peak_fraction is None else f"{100 * row.peak_fraction:.0f} %"
    return f"{plain(row.median_ms)} ({plain(row.q1)} to {plain(row.q3)}), {share}"


def _remarks(found: Measured, rows: list[Row]) -> Iterator[str]:
    if found.notes:
        yield "## Providers\n\n" + _by_reason(found.notes.items())
    broken = [row for row in rows if row.suspicious]
    if broken:
        errors = [row.relative_error if row.reference_error is None else row.reference_error for row in broken]
        lines = [f"- {code(label(r))} on {code(r.case)}: {plain(e)}" for r, e in zip(broken, errors, strict=True)]
        yield "## Errors that neither the format nor the order of additions explains\n\n" + "\n".join(lines)
    gone = found.left_out.to_json()
    if gone:
        cases = {entry["reason"]: f" ({', '.join(entry['cases'])})" if entry["cases"] else "" for entry in gone}
        pairs = [(entry["provider"], entry["reason"] + cases[entry["reason"]]) for entry in gone]
        yield "## Left out\n\n" + _by_reason(pairs)


def _by_reason(pairs: Iterable[tuple[str, str]]) -> str:
    """A line a text, with everyone it is about."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        names.setdefault(text, []).append(code(name))
    return "\n".join(f"- {', '.join(whom)}: {text}" for text, whom in names.items())
