"""Markdown of a comparison."""

from __future__ import annotations

from compress.report.compare import ComparedRun, Comparison
from compress.report.markdown import code, escape, table, value_text
from compress.report.numbers import MISSING


def comparison_markdown(comparison: Comparison) -> str:
    """The whole comparison.md: one table, what the marks mean, missed gates, warnings."""
    metrics = comparison.columns()
    rows = [*([comparison.reference] if comparison.reference else []), *comparison.runs]
    columns = ["run", "weights", "activations", *map(code, metrics), "gates", "front"]
    body = table(columns, [_row(row, metrics) for row in rows], range(3, 3 + len(metrics)))
    parts = ["# Comparison\n", body]
    if comparison.quality:
        words = escape(comparison.quality)
        parts.append(
            f"Front: no other run is as good in both {words} and size (or latency), and better in one of them.\n"
        )
    missed = [f"- {escape(run.run)}: {escape(message)}" for run in comparison.runs for message in run.missed]
    if missed:
        parts.append("## Missed gates\n\n" + "\n".join(missed) + "\n")
    if comparison.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {escape(warning)}" for warning in comparison.warnings) + "\n")
    return "\n".join(parts)


def _row(row: ComparedRun, metrics: list[str]) -> list[str]:
    gates = f"{row.gates - len(row.missed)} of {row.gates} met" if row.gates else MISSING
    values = [value_text(row.metrics.get(name)) for name in metrics]
    return [escape(row.run), escape(row.weights), escape(row.activations), *values, gates, ", ".join(row.fronts)]
