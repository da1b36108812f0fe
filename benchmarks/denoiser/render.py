"""What was found about the denoiser, as JSON and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.denoiser.contestants import CONTESTANTS
from benchmarks.denoiser.measure import Found, Row, ratio
from compress.report.markdown import code, table
from compress.report.numbers import MISSING, bytes_text, count_text, fact_texts, plain

METHOD = (
    "Every session lives in a process of its own, opened with the library's own settings but for the number of "
    "threads. They are asked in turns, round by round: a pause, one untimed call, then timed calls whose median is "
    "the round's sample. Times are medians over rounds, intervals quartiles over rounds; ratios are taken round by "
    "round. Memory is that of the fresh process from opening the file to the end of the first call: private (RssAnon "
    "+ RssShmem, read every 2 ms; in brackets without what the imports took) and resident (VmHWM, mapped files "
    "included). The error is against onnxruntime's float32 output; the weights are random, so it says that a file "
    "computes the model and nothing on quality."
)


@dataclass
class Measured:
    """A run: what was measured, on what, and how."""

    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    model: dict[str, Any]
    found: Found = field(default_factory=Found)
    peaks: list[float] = field(default_factory=list)

    @property
    def peak_gops(self) -> float | None:
        return median(self.peaks) if self.peaks else None

    def finish(self) -> None:
        """Enter each row's fraction of the processor's limit."""
        for row in self.found.rows:
            if self.peak_gops is not None and row.median_ms is not None:
                row.peak_fraction = 2 * self.found.macs / row.median_ms / 1e6 / self.peak_gops

    def to_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "machine": self.machine,
            "settings": self.settings,
            "model": self.model | {"macs": self.found.macs},
            "method": METHOD,
            "peak_gops": self.peak_gops,
            "peak_gops_samples": self.peaks,
            "rows": [row.to_json() for row in self.found.rows],
            "breakdowns": self.found.breakdowns,
            "left_out": self.found.left_out,
        }


def markdown(measured: Measured) -> str:
    """The report for people."""
    return "\n\n".join(_parts(measured)) + "\n"


def _parts(measured: Measured) -> Iterator[str]:
    found, model = measured.found, measured.model
    yield "# A denoiser beside other runtimes"
    yield textwrap.fill(
        f"{model['name']}. Blocks: {model['blocks']}; parameters: {count_text(model['parameters'])}; batch "
        f"{model['batch']}, {model['tokens']} tokens an image, {count_text(found.macs)} multiply-accumulates a call. "
        f"{model['layers']} {METHOD}",
        120,
    )
    yield f"    {measured.command}"
    if measured.peak_gops is not None:
        yield f"Measured int8 limit: {measured.peak_gops:,.0f} GOP/s."
    timed = [row for row in found.rows if row.rounds_ms]
    yield "## Speed"
    yield _speed(timed)
    yield "## Size, opening, memory, output"
    yield _memory(found.rows)
    for name, parts in found.breakdowns.items():
        yield f"## Time by operator: {code(name)}"
        yield _breakdown(parts)
    notes = {c.label: c.note for c in CONTESTANTS if c.note and any(row.label == c.label for row in found.rows)}
    if notes:
        yield "## Providers\n\n" + "\n".join(f"- {code(name)}: {note}" for name, note in notes.items())
    if found.left_out:
        yield "## Left out\n\n" + "\n".join(f"- {code(name)}: {why}" for name, why in found.left_out.items())
    facts = ", ".join(f"{name} {value}" for name, value in fact_texts(measured.machine))
    yield "## Machine\n\n" + textwrap.fill(f"{facts}.", 120, break_on_hyphens=False)


def _speed(rows: list[Row]) -> str:
    ours = [row for row in rows if row.provider == "compress"]
    head = [
        "provider",
        "ms (quartiles)",
        "share of the limit",
        "error",
        *(f"{code(o.label)} is faster by" for o in ours),
    ]
    body = [
        [
            code(row.label),
            f"{plain(row.median_ms)} ({plain(row.q1)} to {plain(row.q3)})",
            MISSING if row.peak_fraction is None else f"{100 * row.peak_fraction:.0f} %",
            plain(row.relative_error, digits=2),
            *(MISSING if row is mine else _ratio_text(mine, row) for mine in ours),
        ]
        for row in rows
    ]
    return table(head, body, range(1, len(head))).rstrip()


def _ratio_text(ours: Row, other: Row) -> str:
    found = ratio(ours, other)
    return f"{found['value']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})"


def _memory(rows: list[Row]) -> str:
    head = ["provider", "file", "of float32", "open", "first call", "private peak (above imports)", "resident peak"]
    head += ["error", "error against ours on the same file"]
    body = [
        [
            code(row.label),
            bytes_text(row.file_bytes),
            MISSING if row.size_ratio is None else f"{row.size_ratio:.3f}",
            f"{plain(row.open_seconds)} s",
            f"{plain(row.first_run_seconds)} s",
            f"{row.peak_mb:,.0f} MB ({row.above_imports_mb:,.0f})",
            f"{row.peak_rss_mb:,.0f} MB",
            plain(row.relative_error, digits=2),
            plain(row.same_file_error, digits=2),
        ]
        for row in rows
    ]
    return table(head, body, range(1, len(head))).rstrip()


def _breakdown(parts: list[dict[str, Any]]) -> str:
    head = ["operator", "nodes", "ms a call", "share"]
    body = [[code(p["op"]), f"{p['nodes']}", plain(p["ms"]), f"{100 * p['share']:.1f} %"] for p in parts]
    return table(head, body, range(1, len(head))).rstrip()
