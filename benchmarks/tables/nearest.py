"""The baseline: rounding to nearest at every width and granularity. What every method must beat."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from benchmarks.tables.table import Cell, Finding, Results, Table, Verdict

BITS = ("W8A8", "W6A8", "W4A8", "W4A6", "W4A4", "W3A8", "W2A8")
GRANULARITIES: dict[str, dict[str, Any]] = {
    "tensor": {"granularity": "tensor"},
    "channel": {"granularity": "channel"},
    "group 64": {"granularity": "group", "group": 64},
    "group 32": {"granularity": "group", "group": 32},
}
STATIC = "channel, static input"
"""Column with weights per channel and one calibrated scale for each layer's whole input."""
STATIC_BITS = ("W8A8", "W4A8", "W4A4")
SECTIONS = {
    "digits-dit": "zoo://digits-dit",
    "digits-unet": "zoo://digits-unet",
    "digits-dit, outliers": "zoo://digits-dit?stress=outliers",
}
HEADLINE = (("W8A8", "channel"), ("W4A8", "channel"))
KEPT = [{"role": "in_projection", "keep": True}, {"role": "out_projection", "keep": True}]

_NOTE = """\
Method `nearest` with full-range (min-max) scales. Every linear and convolution has the row's formats but the first and
the last layer, which stay in floating point; that includes the modulation and the time embedding. Columns name the
weights' granularity. Inputs have one dynamic scale a token (an image, for a convolution), except in the last column:
there each layer's input has one static scale, the largest magnitude over a trajectory of 64 images."""


def _stage(bits: str, column: str) -> dict[str, Any]:
    weights, activations = bits[1], bits[3]
    granularity = GRANULARITIES["channel" if column == STATIC else column]
    inputs = {"granularity": "tensor", "mode": "static"} if column == STATIC else {}
    return {
        "kind": "quantize",
        "method": {"kind": "nearest"},
        "weights": {"format": f"int{weights}", **granularity},
        "activations": {"format": f"int{activations}", **inputs},
        "rules": KEPT,
    }


def _cells() -> Iterator[Cell]:
    for section in SECTIONS:
        for bits in BITS:
            columns = [*GRANULARITIES, *([STATIC] if bits in STATIC_BITS else [])]
            for column in columns:
                # The variant with outliers is the same function in full precision: its headline would be that one's.
                headline = (bits, column) in HEADLINE and "outliers" not in section
                yield Cell(section, bits, column, (_stage(bits, column),), headline)


def findings(results: Results) -> list[Finding]:
    """Fewer bits are worse, smaller groups no worse, and outliers break scales that many channels share."""
    found = []
    for section in SECTIONS:
        for column in [*GRANULARITIES, STATIC]:
            for order in (("W8A8", "W6A8", "W4A8", "W3A8", "W2A8"), ("W4A8", "W4A6", "W4A4")):
                rows = [bits for bits in order if (section, bits, column) in results]
                if len(rows) > 1:
                    found.append(_increasing(results, [(section, bits, column) for bits in rows], "fewer bits"))
        for bits in BITS:
            columns = [c for c in ("group 32", "group 64", "channel", "tensor") if (section, bits, c) in results]
            if len(columns) > 1:
                found.append(_increasing(results, [(section, bits, c) for c in columns], "coarser scales"))
    plain, stressed = ("digits-dit", "W8A8", STATIC), ("digits-dit, outliers", "W8A8", STATIC)
    if plain in results and stressed in results:
        before, after = results[plain].value("noise_error"), results[stressed].value("noise_error")
        found.append(
            Finding(
                "outliers raise the noise error of W8A8 with static per-tensor inputs at least tenfold",
                "yes" if after >= 10 * before else "no",
                f"{before:.3g} without, {after:.3g} with",
            )
        )
    return found


def _increasing(results: Results, cells: list[tuple[str, str, str]], why: str) -> Finding:
    found = [results[cell].find("noise_error") for cell in cells]
    metrics = [metric for metric in found if metric is not None]
    pairs = list(pairwise(metrics))
    holds: Verdict = "yes"
    if any(after.value < before.value for before, after in pairs):
        apart = any(after.spread["ci95_high"] < before.spread["ci95_low"] for before, after in pairs)
        holds = "no" if apart else "within intervals"
    section, row, column = cells[0]
    same_row = len({cell[1] for cell in cells}) == 1
    names = [cell[2] if same_row else cell[1] for cell in cells]
    evidence = ", ".join(f"{name} {metric.value:.3g}" for name, metric in zip(names, metrics, strict=True))
    return Finding(f"{section}, {row if same_row else column}: noise error grows with {why}", holds, evidence)


TABLE = Table(
    name="nearest",
    title="Rounding to nearest",
    note=_NOTE,
    sections=SECTIONS,
    cells=tuple(_cells()),
    findings=findings,
)
