"""Charts of points and lines on two axes, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compress.report.svg import Axis, canvas, element, marker, polyline, text, tip

WIDTH = 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 30, 46
_LETTER = 8.0  # width of a bold letter in the widest of the fonts that a system may have


class Point(NamedTuple):
    """A value at (x, y) with, where known, its interval in y (low, high) and its extent in x (left, right)."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    label: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour (`ink`, a class of the style sheet) and one marker shape; "" draws no markers."""

    name: str
    ink: str
    points: Sequence[Point]
    marker: str = "circle"
    joined: bool = False
    radius: float = 5.0


class Guide(NamedTuple):
    """A dashed line across the plot at a value of one axis ("x" or "y"), such as a gate's bound."""

    axis: str
    value: float
    label: str


@dataclass(frozen=True)
class Frame:
    """Two axes on a canvas: turns values into positions."""

    x: Axis
    y: Axis
    height: float
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM

    def at_x(self, value: float) -> float:
        return self.left + self.x.place(value) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        return self.bottom - self.y.place(value) * (self.bottom - self.top)

    def draw(self) -> list[str]:
        """Grid lines, tick texts and titles."""
        parts = []
        for value, words in self.y.ticks():
            y = self.at_y(value)
            parts.append(element("line", x1=self.left, y1=y, x2=self.right, y2=y, css="grid"))
            parts.append(text(words, self.left - 8, y + 4, anchor="end"))
        for value, words in self.x.ticks():
            x = self.at_x(value)
            parts.append(element("line", x1=x, y1=self.bottom, x2=x, y2=self.bottom + 5, css="axis"))
            parts.append(text(words, x, self.bottom + 19, anchor="middle"))
        parts.append(element("line", x1=self.left, y1=self.bottom, x2=self.right, y2=self.bottom, css="axis"))
        # Titles lie level, the vertical one above its axis: nobody reads sideways.
        parts.append(text(self.y.title, 4, 14, "axis-title"))
        parts.append(text(self.x.title, self.right, self.height - 6, "axis-title", "end"))
        return parts


def xy_chart(
    label: str,
    series: Sequence[Series],
    axes: tuple[Axis, Axis],
    *,
    guides: Sequence[Guide] = (),
    staircase: Sequence[tuple[float, float]] = (),
    height: float = 300,
) -> str:
    """A scatter or line chart of all series on one pair of (x, y) axes; points with a NaN or infinity are left out.

    `staircase` holds the corners of a line behind the points, such as a Pareto front.
    """
    frame = Frame(*axes, height)
    parts = frame.draw()
    if len(staircase) > 1:
        parts.append(polyline([(frame.at_x(x), frame.at_y(y)) for x, y in staircase], "front"))
    for guide in guides:
        parts += _draw_guide(frame, guide)
    finite = [(one, [p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)]) for one in series]
    parts += [_draw_series(frame, one, points) for one, points in finite]
    parts += _draw_labels(frame, [point for one, points in finite if one.marker for point in points], guides)
    return canvas(WIDTH, height, label, parts)


def _draw_guide(frame: Frame, guide: Guide) -> list[str]:
    if guide.axis == "x":
        x = frame.at_x(guide.value)
        near_end = x > (frame.left + frame.right) / 2
        return [
            element("line", x1=x, y1=frame.top - 6, x2=x, y2=frame.bottom, css="guide"),
            text(
                guide.label, x + (-5 if near_end else 5), frame.bottom - 7, "guide-label", "end" if near_end else None
            ),
        ]
    y = frame.at_y(guide.value)
    return [
        element("line", x1=frame.left, y1=y, x2=frame.right, y2=y, css="guide"),
        text(guide.label, frame.right, y - 5, "guide-label", "end"),
    ]


def _draw_series(frame: Frame, series: Series, points: Sequence[Point]) -> str:
    parts = []
    if series.joined and len(points) > 1:
        parts.append(polyline([(frame.at_x(p.x), frame.at_y(p.y)) for p in points]))
    for point in points:
        x, y = frame.at_x(point.x), frame.at_y(point.y)
        mark = []
        if point.left is not None and point.right is not None:
            ends = frame.at_x(point.left), frame.at_x(point.right)
            mark.append(element("line", x1=ends[0], y1=y, x2=ends[1], y2=y, css="extent"))
        if point.low is not None and point.high is not None:
            ends = frame.at_y(point.low), frame.at_y(point.high)
            mark.append(element("line", x1=x, y1=ends[0], x2=x, y2=ends[1], css="whisker"))
        if series.marker:
            mark.append(marker(series.marker, x, y, series.radius))
        parts.append(element("g", *tip(point.tip), *mark, css="hit"))
    return element("g", *parts, css=series.ink)


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def _draw_labels(frame: Frame, points: Sequence[Point], guides: Sequence[Guide]) -> list[str]:
    """The points' labels, each on the side where it covers the least of marks, lines, other labels and the margin."""
    taken = [box for point in points for box in _point_boxes(frame, point)]
    taken += [_guide_box(frame, guide) for guide in guides]
    page = _Box(frame.left, frame.top - 8, frame.right + 14, frame.bottom)
    parts = []
    for point in points:
        if not point.label:
            continue
        x, y, width = frame.at_x(point.x), frame.at_y(point.y), _LETTER * len(point.label)
        boxes, costs = [], []
        for rank, (dx, dy, shift) in enumerate(_SPOTS):
            left, base = x + dx - shift * width, y + dy
            boxes.append(_Box(left, base - 11, left + width, base + 3))
            outside = width * 14 - boxes[-1].overlap(page)
            costs.append(sum(boxes[-1].overlap(other) for other in taken) + 3 * outside + rank)
        best = costs.index(min(costs))
        taken.append(boxes[best])
        dx, dy, shift = _SPOTS[best]
        parts.append(text(point.label, x + dx, y + dy, "point-label", _ANCHORS[shift]))
    return parts


_ANCHORS = {0.0: "start", 0.5: "middle", 1.0: "end"}
# Where a label may stand: offset of its anchor, and the share of its width that lies left of the anchor. Right and left
# of the point, above and below it, then the corners.
_SPOTS: tuple[tuple[float, float, float], ...] = (
    (10, 4, 0.0), (-10, 4, 1.0), (0, -11, 0.5), (0, 20, 0.5), (8, -8, 0.0), (8, 17, 0.0), (-8, -8, 1.0), (-8, 17, 1.0),
)  # fmt: skip


def _point_boxes(frame: Frame, point: Point) -> list[_Box]:
    x, y = frame.at_x(point.x), frame.at_y(point.y)
    boxes = [_Box(x - 7, y - 7, x + 7, y + 7)]
    if point.low is not None and point.high is not None:
        boxes.append(_Box(x - 2, frame.at_y(point.high), x + 2, frame.at_y(point.low)))
    return boxes


def _guide_box(frame: Frame, guide: Guide) -> _Box:
    if guide.axis == "x":
        x = frame.at_x(guide.value)
        return _Box(x - 2, frame.top, x + 2, frame.bottom)
    y = frame.at_y(guide.value)
    return _Box(frame.left, y - 2, frame.right, y + 2)
