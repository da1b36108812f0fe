"""The headline of a report in a few cards: size, quality, likeness, distribution, speed."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, NamedTuple

from compress.report.metrics import TIMES
from compress.report.model import Artefact, Metric, Report
from compress.report.numbers import bytes_text, plain, shown, spread_of
from compress.report.view import AGAINST_FP16, quality_metric

GateState = Literal["met", "missed", ""]


class Card(NamedTuple):
    """One headline: a label, a large value with a few words, small lines below, and the state of its gates."""

    label: str
    value: str
    words: str
    lines: list[str]
    gate: GateState


def headline_cards(report: Report) -> list[Card]:
    """The cards that the report has measurements for, in reading order."""
    made = (_size(report), _quality(report), _likeness(report), _distribution(report), _speed(report))
    return [card for card in made if card is not None]


def _gate_state(report: Report, metrics: Collection[str]) -> GateState:
    states = [gate.passed for gate in report.gates if gate.metric in metrics]
    return "" if not states else "met" if all(states) else "missed"


def _best(report: Report, name: str, order: tuple[Artefact, ...] = ("checkpoint", "onnx")) -> Metric | None:
    return next((metric for artefact in order if (metric := report.find(name, artefact))), None)


def _size(report: Report) -> Card | None:
    ratio = _best(report, "size_ratio")
    size = _best(report, "size_bytes")
    if ratio is None or not 0 < ratio.value < math.inf:
        return None
    lines = []
    whole = report.find("size_bytes", "reference")
    if size is not None:
        lines.append(f"{bytes_text(size.value)}{f' instead of {bytes_text(whole.value)}' if whole else ''}")
    half = report.find("size_ratio", ratio.artefact, **AGAINST_FP16)
    lines.append(f"{plain(ratio.value)} of fp32{f', {plain(half.value)} of fp16' if half else ''}")
    bits = _best(report, "bits_per_weight")
    if bits is not None:
        lines.append(f"{plain(bits.value)} bits per weight")
    gate = _gate_state(report, ("size_ratio", "size_bytes", "bits_per_weight"))
    # The ratio counts from fp32; where the original's own files are smaller, the words must say so.
    stored_full = whole is None or size is None or abs(whole.value * ratio.value - size.value) <= 0.02 * size.value
    words = f"{'smaller' if ratio.value <= 1 else 'larger'}{'' if stored_full else ' than fp32'}"
    return Card("Size", f"{plain(max(1 / ratio.value, ratio.value))}{TIMES}", words, lines, gate)


def _quality(report: Report) -> Card | None:
    name = quality_metric([report])
    metric = _best(report, name) if name in ("class_accuracy", "alignment") else None
    if name is None or metric is None:
        return None
    before, spread = report.find(name, "reference"), spread_of(metric.value, metric.spread)
    lines = []
    if before is not None:
        points = 100 * (before.value - metric.value)
        lines.append(f"reference {plain(100 * before.value, 1)} %, {_change(points)}")
    if spread is not None:
        lines.append(f"{spread.kind} {plain(100 * spread.low, 1)} to {plain(100 * spread.high, 1)} %, n {metric.n:,}")
    label = "Class accuracy" if name == "class_accuracy" else "Alignment"
    return Card(label, f"{plain(100 * metric.value, 1)} %", "", lines, _gate_state(report, (name, f"{name}_drop")))


def _change(points: float) -> str:
    if abs(points) < 0.05:
        return "unchanged"
    return f"{plain(abs(points), 1)} points {'lower' if points > 0 else 'higher'}"


def _likeness(report: Report) -> Card | None:
    psnr, ssim = _best(report, "psnr"), _best(report, "ssim")
    if psnr is None:
        return None
    text, spread = shown(psnr), spread_of(psnr.value, psnr.spread)
    lines = ["to the reference, on the same noise"]
    if spread is not None:
        lines.append(f"{spread.kind} {text.spread} dB, n {psnr.n:,}")
    if ssim is not None:
        lines.append(f"SSIM {shown(ssim).value}")
    return Card("PSNR", text.value.removesuffix(" dB"), "dB", lines, _gate_state(report, ("psnr", "ssim")))


def _distribution(report: Report) -> Card | None:
    metric = _best(report, "frechet_distance")
    if metric is None:
        return None
    before, text = report.find("frechet_distance", "reference"), shown(metric)
    spread = spread_of(metric.value, metric.spread)
    lines = [f"reference {shown(before).value}"] if before else []
    lines.append(f"{spread.kind} {text.spread}, n {metric.n:,}" if spread else f"n {metric.n:,}")
    return Card(
        "Fréchet distance", text.value, "", lines, _gate_state(report, ("frechet_distance", "frechet_increase"))
    )


def _speed(report: Report) -> Card | None:
    metric = _best(report, "latency_ms", ("onnx", "checkpoint"))
    if metric is None:
        return None
    before, text = report.find("latency_ms", "reference"), shown(metric)
    spread = spread_of(metric.value, metric.spread)
    lines = [f"{metric.artefact} {text.value}{f' instead of {shown(before).value}' if before else ''}"]
    if spread is not None:
        lines.append(f"{spread.kind} {text.spread} ms, n {metric.n:,}")
    gate = _gate_state(report, ("latency_ms", "latency_speedup"))
    if before is None or not metric.value > 0 or not before.value > 0:
        return Card("Latency", text.value, "", lines[1:], gate)
    gain = before.value / metric.value
    words = "faster" if gain >= 1 else "slower"
    return Card("Latency", f"{plain(max(gain, 1 / gain))}{TIMES}", words, lines, gate)
