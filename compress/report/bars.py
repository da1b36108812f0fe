"""Charts of horizontal bars, stacked or with an interval around their end, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from compress.report.plots import WIDTH
from compress.report.svg import canvas, element, text, tip


class Part(NamedTuple):
    """One stretch of a stacked bar."""

    name: str
    ink: str
    value: float
    tip: str


@dataclass(frozen=True)
class Bar:
    """A named bar: stacked parts, or one part with an interval (low, high) around its end."""

    name: str
    total: str
    parts: Sequence[Part] = field(default_factory=tuple)
    low: float | None = None
    high: float | None = None

    @property
    def end(self) -> float:
        return sum(part.value for part in self.parts if part.value > 0)


def bar_chart(label: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from zero on one scale, each under its name with its total in words at the right."""
    row, top = 50, 2
    full = max((max(bar.end, bar.high or 0.0) for bar in bars), default=0.0) or 1.0
    parts = []
    for index, bar in enumerate(bars):
        y = top + index * row
        parts += [text(bar.name, 0, y + 13, "bar-name"), text(bar.total, WIDTH, y + 13, "bar-total", "end")]
        parts.append(element("rect", x=0, y=y + 20, width=WIDTH, height=18, rx=3, css="track"))
        parts += _draw_bar(bar, y + 20, WIDTH / full)
    return canvas(WIDTH, top + row * len(bars), label, parts)


def _draw_bar(bar: Bar, y: float, scale: float) -> list[str]:
    parts, x = [], 0.0
    for part in bar.parts:
        if not part.value > 0:
            continue
        # A sliver stays visible: half a pixel of a class that is there is truer than nothing.
        width = max(part.value * scale, 0.75)
        shape = element("rect", x=x, y=y, width=min(width, WIDTH - x), height=18, rx=1.5, css="fill segment")
        parts.append(element("g", *tip(part.tip), shape, css=f"hit {part.ink}"))
        x = min(x + width, WIDTH - 0.75)
    if bar.low is not None and bar.high is not None:
        low, high = bar.low * scale, bar.high * scale
        parts.append(element("line", x1=low, y1=y + 9, x2=high, y2=y + 9, css="quartile"))
        parts += [element("line", x1=end, y1=y + 4, x2=end, y2=y + 14, css="quartile") for end in (low, high)]
    return parts
