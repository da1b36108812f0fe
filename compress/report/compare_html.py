"""HTML of a comparison: fronts, table, samples; one file like the report."""

from __future__ import annotations

from collections.abc import Sequence

from compress.report.charts import Chart, Key, axis_title, metric_tip
from compress.report.compare import ComparedRun, Comparison, Front
from compress.report.html import Picture, PictureGroup, render
from compress.report.metrics import metric_info
from compress.report.model import Metric
from compress.report.numbers import MISSING, bytes_text, shown, spread_of
from compress.report.plots import Point, Series, xy_chart
from compress.report.sheets import Cell, Column, Sheet, metric_cell
from compress.report.svg import Axis

_KEYS = [
    Key("on the front", "ink-front", "circle"),
    Key("beaten by another run", "ink-behind", "circle"),
    Key("reference", "ink-reference", "square"),
]


def comparison_html(comparison: Comparison) -> str:
    """The whole page."""
    charts = [_front_chart(comparison, "size"), _front_chart(comparison, "latency")]
    count = len(comparison.runs)
    return render(
        "comparison.html.j2",
        {
            "title": f"{count} runs compared · compress",
            "heading": f"{count} run{'s' if count != 1 else ''} compared",
            "version": comparison.compress_version,
            "warnings": comparison.warnings,
            "charts": [chart for chart in charts if chart is not None],
            "sheet": _sheet(comparison),
            "missed": [(run.run, run.missed) for run in comparison.runs if run.missed],
            "samples": _samples(comparison),
        },
    )


def _front_chart(comparison: Comparison, front: Front) -> Chart | None:
    """Quality over size or latency, the Pareto front as a dashed staircase."""
    name = comparison.quality
    if name is None:
        return None
    rows = comparison.runs + ([comparison.reference] if comparison.reference else [])
    start = _shared_start([row.run for row in comparison.runs])
    points = {row.run: point for row in rows if (point := _point(row, front, name, start)) is not None}
    if not any(row.run in points for row in comparison.runs):
        return None
    best = [points[row.run] for row in comparison.runs if front in row.fronts and row.run in points]
    behind = [points[row.run] for row in comparison.runs if front not in row.fronts and row.run in points]
    series = [
        Series("beaten", "ink-behind", behind, "circle", radius=4.5),
        Series("front", "ink-front", best, "circle", radius=5.5),
    ]
    if comparison.reference and "reference" in points:
        series.append(Series("reference", "ink-reference", [points["reference"]], "square"))
    title, across = ("Quality against size", "weight files, MB")
    note = "A run is on the front if no other is at least as good in both and better in one."
    if front == "latency":
        title, across = ("Quality against latency", "latency of one denoiser call, ms")
        note += " Latency is that of ONNX where it was measured, quality that of the checkpoint."
    x = Axis.covering(across, [point.x for point in points.values()], log=True)
    heights = [y for p in points.values() for y in (p.y, p.low, p.high) if y is not None]
    y = Axis.covering(axis_title(name), heights)
    if x is None or y is None:
        return None
    staircase = _staircase(best, higher=metric_info(name).direction != "lower")
    return Chart(title, note, xy_chart(title, series, (x, y), staircase=staircase, height=340), _KEYS)


def _shared_start(names: Sequence[str]) -> int:
    """How many leading characters all the names share, up to a hyphen: labels in a chart can do without them."""
    if len(names) < 2:
        return 0
    length = 0
    while all(length < len(name) and name[length] == names[0][length] for name in names):
        length += 1
    return names[0].rfind("-", 0, length) + 1


def _point(row: ComparedRun, front: Front, quality: str, start: int) -> Point | None:
    cost, value = row.metrics.get("size_bytes" if front == "size" else "latency_ms"), row.metrics.get(quality)
    if cost is None or value is None:
        return None
    spread = spread_of(value.value, value.spread)
    low, high = (spread.low, spread.high) if spread else (None, None)
    price = bytes_text(cost.value) if front == "size" else shown(cost).value
    x = cost.value / 1e6 if front == "size" else cost.value
    label = row.run if row.stages == "" else row.run[start:]
    return Point(x, value.value, low, high, label=label, tip=f"{row.run}: {price}, {quality} {metric_tip(value)}")


def _staircase(best: Sequence[Point], *, higher: bool) -> list[tuple[float, float]]:
    """Corners of the border of what the runs on the front beat: from the cheapest run to the dearest."""
    corners: list[tuple[float, float]] = []
    for point in sorted(best, key=lambda p: (p.x, p.y if higher else -p.y)):
        if corners:
            corners.append((point.x, corners[-1][1]))
        corners.append((point.x, point.y))
    return corners


_HEADS = {
    "size_bytes": "size",
    "size_ratio": "ratio",
    "psnr": "PSNR",
    "frechet_distance": "Fréchet distance",
    "latency_ms": "latency",
    "latency_speedup": "speed-up",
}


def _sheet(comparison: Comparison) -> Sheet:
    metrics = comparison.columns()
    heads = [_HEADS.get(name, "drop" if name.endswith("_drop") else name.replace("_", " ")) for name in metrics]
    columns = [Column("run"), Column("gates"), Column("front"), *(Column(head, True) for head in heads)]
    rows = [*([comparison.reference] if comparison.reference else []), *comparison.runs]
    return Sheet("Runs", columns, [_cells(row, metrics) for row in rows], wide=True)


def _cells(row: ComparedRun, metrics: Sequence[str]) -> list[Cell]:
    state = Cell(MISSING, css="muted")
    if row.gates:
        met = row.gates - len(row.missed)
        css = "state missed" if row.missed else "state met"
        state = Cell(f"{'✕' if row.missed else '✓'} {met}/{row.gates}", css=css, tip="; ".join(row.missed))
    formats = "" if row.weights == MISSING else f"{row.weights} / {row.activations}"
    small = " · ".join(words for words in (formats, row.stages) if words)
    name = Cell(row.run, small, "name-column strong" if row.fronts else "name-column")
    fronts = Cell(", ".join(row.fronts) or MISSING, css="" if row.fronts else "muted")
    return [name, state, fronts, *(_value(row.metrics.get(metric)) for metric in metrics)]


def _value(metric: Metric | None) -> Cell:
    """The value with its interval below; what kind of interval it is, and n, in the tooltip."""
    cell = metric_cell(metric)
    return cell if metric is None else cell._replace(small=shown(metric).spread, tip=metric_tip(metric))


def _samples(comparison: Comparison) -> list[PictureGroup]:
    rows = [*([comparison.reference] if comparison.reference else []), *comparison.runs]
    pictures = [Picture(row.run, row.sample.png_base64, None) for row in rows if row.sample]
    notes = dict.fromkeys(row.sample.note for row in rows if row.sample and row.sample.note)
    return [PictureGroup("Samples", "; ".join(notes), pictures)] if pictures else []
