"""The charts of a report: quality against size, error per noise band, bytes by tensor class, latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from compress.report.bars import Bar, Part, bar_chart
from compress.report.model import Artefact, Metric, Report, Table
from compress.report.numbers import bytes_text, plain, shown, spread_of
from compress.report.plots import Guide, Point, Series, xy_chart
from compress.report.svg import Axis
from compress.report.tables import ARTEFACTS
from compress.report.view import Band, artefacts_of, bands, quality_metric

INKS: dict[str, str] = {"reference": "ink-reference", "checkpoint": "ink-checkpoint", "onnx": "ink-onnx"}
SHAPES: dict[str, str] = {"reference": "square", "checkpoint": "circle", "onnx": "diamond"}
# Later artefacts are drawn over earlier ones and are smaller, so that equal values still show both.
RADII: dict[str, float] = {"reference": 5.0, "checkpoint": 5.5, "onnx": 3.6}
CLASS_INKS = 7


class Key(NamedTuple):
    """An entry of a chart's legend."""

    name: str
    ink: str
    marker: str = "square"


class Chart(NamedTuple):
    """A chart with what the page writes around it."""

    title: str
    note: str
    svg: str
    keys: Sequence[Key] = ()


def metric_tip(metric: Metric) -> str:
    """A metric in one line for a tooltip: value, spread and its kind, n."""
    text, spread = shown(metric), spread_of(metric.value, metric.spread)
    around = f" ({spread.kind} {text.spread})" if spread else ""
    return f"{text.value}{around}, n {metric.n:,}"


def artefact_keys(artefacts: Sequence[Artefact]) -> list[Key]:
    """Legend of the artefacts, in their fixed colours and shapes."""
    return [Key(artefact, INKS[artefact], SHAPES[artefact]) for artefact in artefacts]


def quality_size_chart(report: Report) -> Chart | None:
    """Each artefact at its megabytes and its quality, with the gates on either as dashed lines."""
    name = quality_metric([report])
    if name is None:
        return None
    series = []
    for artefact in ARTEFACTS:
        size, quality = report.find("size_bytes", artefact), report.find(name, artefact)
        if size is None or quality is None:
            continue
        spread = spread_of(quality.value, quality.spread)
        low, high = (spread.low, spread.high) if spread else (None, None)
        words = f"{artefact}: {bytes_text(size.value)}, {name} {metric_tip(quality)}"
        point = Point(size.value / 1e6, quality.value, low, high, label=artefact, tip=words)
        series.append(Series(artefact, INKS[artefact], [point], SHAPES[artefact]))
    guides = _gate_guides(report, name)
    points = [point for one in series for point in one.points]
    across = [point.x for point in points] + [guide.value for guide in guides if guide.axis == "x"]
    heights = [y for p in points for y in (p.y, p.low, p.high) if y is not None]
    x = Axis.covering("weight files, MB", across, zero=True)
    y = Axis.covering(axis_title(name), heights + [guide.value for guide in guides if guide.axis == "y"])
    if x is None or y is None:
        return None
    note = "Up and to the left is better. Vertical strokes show the interval of the quality, dashed lines the gates."
    return Chart("Quality against size", note, xy_chart(f"{name} against size", series, (x, y), guides=guides))


def axis_title(name: str) -> str:
    """A quality metric in words for an axis."""
    return {"psnr": "PSNR to the reference, dB"}.get(name, name.replace("_", " "))


def _gate_guides(report: Report, quality: str) -> list[Guide]:
    """The gates that bound one of the two axes, as lines; a drop counts from the reference's own quality."""
    guides = []
    start = report.find(quality, "reference")
    for gate in report.gates:
        if gate.labels:
            continue
        if gate.metric == "size_bytes" and gate.maximum is not None:
            guides.append(Guide("x", gate.maximum / 1e6, f"gate {bytes_text(gate.maximum)}"))
        elif gate.metric == "size_ratio" and gate.maximum is not None:
            full = _fp32_bytes(report, gate.artefact)
            guides += [Guide("x", gate.maximum * full / 1e6, f"gate {gate.maximum:g} of fp32")] if full else []
        elif gate.metric == quality and gate.minimum is not None:
            guides.append(Guide("y", gate.minimum, f"gate at least {gate.minimum:g}"))
        elif gate.metric == f"{quality}_drop" and gate.maximum is not None and start:
            guides.append(Guide("y", start.value - gate.maximum, f"gate: at most {gate.maximum:g} below reference"))
    return list({(guide.axis, guide.value): guide for guide in guides}.values())


def _fp32_bytes(report: Report, artefact: Artefact) -> float | None:
    """The bytes that a size ratio of one stands for; the original's own files may be in half precision."""
    size, ratio = report.find("size_bytes", artefact), report.find("size_ratio", artefact)
    return size.value / ratio.value if size and ratio and ratio.value > 0 else None


def noise_error_chart(report: Report) -> Chart | None:
    """The error of the predicted noise per band: over sigma on logarithmic axes, or as bars where sigma is unknown."""
    found = bands(report)
    if not found:
        return None
    present = [artefact for artefact in artefacts_of(report) if any(artefact in band.cells for band in found)]
    title = "Error of the predicted noise, per noise band"
    if all(band.low is not None and band.high is not None for band in found):
        return _noise_over_sigma(title, found, present)
    bars = [
        Bar(f"band {band.name}, {artefact}", shown(cell).value, [Part(artefact, INKS[artefact], cell.value, "")])
        for band in found
        for artefact, cell in band.cells.items()
    ]
    return Chart(title, "", bar_chart(title, bars), artefact_keys(present))


def _noise_over_sigma(title: str, found: Sequence[Band], present: Sequence[Artefact]) -> Chart | None:
    limits = _drawable(found)
    series = []
    for artefact in present:
        points = []
        for band in found:
            cell, low, high = band.cells.get(artefact), *(limits(end) for end in (band.low, band.high))
            if cell is None:
                continue
            spread = spread_of(cell.value, cell.spread)
            bottom, top = (spread.low, spread.high) if spread and spread.low > 0 else (None, None)
            words = f"{artefact}, sigma {band.range_text}: {metric_tip(cell)}"
            points.append(Point(math.sqrt(low * high), cell.value, bottom, top, low, high, tip=words))
        series.append(Series(artefact, INKS[artefact], points, SHAPES[artefact], joined=True, radius=RADII[artefact]))
    points = [point for one in series for point in one.points]
    x = Axis.covering("noise level sigma", [s for p in points for s in (p.left, p.right) if s], log=True)
    ends = [e for p in points for e in (p.y, p.low, p.high) if e is not None]
    positive = [end for end in ends if end > 0]
    y = Axis.covering("noise error", positive or ends, log=True)
    if x is None or y is None:
        return None
    if y.log:
        series = [replace(one, points=[p for p in one.points if p.y > 0]) for one in series]
    note = "Less is better. Broad strokes show how far a band reaches, upright ones the interval of its error."
    if "reference" in present:
        note += " The floor is what the reference differs by from itself."
    if len(positive) < len(ends):
        note += " Errors of exactly zero are not drawn." if y.log else ""
    keys = [key._replace(name="floor") if key.name == "reference" else key for key in artefact_keys(present)]
    return Chart(title, note, xy_chart(title, series, (x, y)), keys)


def _drawable(found: Sequence[Band]) -> Callable[[float | None], float]:
    """Makes noise levels fit a logarithmic axis: zero and infinity move half an octave beyond the other levels."""
    levels = [end for band in found for end in (band.low, band.high) if end and math.isfinite(end)] or [1.0]
    least, most = min(levels) / 1.4, max(levels) * 1.4
    return lambda level: min(max(level or 0.0, least), most)


def bytes_chart(table: Table) -> Chart | None:
    """A stacked bar per artefact of a table of kind `bytes`; classes beyond the palette are drawn together."""
    totals = {str(row[0]): sum(_number(cell) for cell in row[1:]) for row in table.rows}
    ranked = sorted(totals, key=lambda name: -totals[name])
    own = ranked if len(ranked) <= CLASS_INKS else ranked[: CLASS_INKS - 1]
    inks = {name: f"ink-{index + 1}" for index, name in enumerate(own)}
    bars = []
    for column, artefact in enumerate(table.columns[1:], start=1):
        sizes = {str(row[0]): _number(row[column]) for row in table.rows}
        whole = sum(sizes.values())
        parts = [_class_part(name, inks[name], sizes.get(name, 0.0), whole) for name in own]
        if len(ranked) > len(own):
            rest = sum(sizes.get(name, 0.0) for name in ranked[len(own) :])
            parts.append(_class_part("other", f"ink-{CLASS_INKS}", rest, whole))
        bars.append(Bar(artefact, bytes_text(whole), parts))
    if not any(bar.end > 0 for bar in bars):
        return None
    keys = [Key(name, ink) for name, ink in inks.items()]
    keys += [Key("other", f"ink-{CLASS_INKS}")] if len(ranked) > len(own) else []
    return Chart(table.title, table.note, bar_chart(table.title, bars), keys)


def _class_part(name: str, ink: str, size: float, whole: float) -> Part:
    share = f", {plain(100 * size / whole, 1)} %" if whole else ""
    return Part(name, ink, size, f"{name}: {bytes_text(size)}{share}")


def _number(cell: str | float | int | None) -> float:
    return float(cell) if isinstance(cell, (int, float)) and math.isfinite(cell) else 0.0


def latency_chart(report: Report) -> Chart | None:
    """The median latency of each artefact with its quartiles."""
    bars = []
    for artefact in ARTEFACTS:
        cell = report.find("latency_ms", artefact)
        if cell is None or not math.isfinite(cell.value):
            continue
        spread = spread_of(cell.value, cell.spread)
        low, high = (spread.low, spread.high) if spread else (None, None)
        part = Part(artefact, INKS[artefact], cell.value, f"{artefact}: {metric_tip(cell)}")
        bars.append(Bar(artefact, shown(cell).value, [part], low, high))
    if not bars:
        return None
    kinds = {spread_of(m.value, m.spread) for m in report.metrics if m.name == "latency_ms" and not m.labels}
    words = sorted({spread.kind for spread in kinds if spread})
    note = f"Bars end at the median; the bracket shows {' or '.join(words)}." if words else "Bars end at the median."
    return Chart("Latency of one denoiser call", note, bar_chart("latency", bars))
