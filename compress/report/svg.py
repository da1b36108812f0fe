"""Small SVG vocabulary: escaped elements, markers, and axes that choose their own ticks.

Colours come from the page's style sheet through classes (`ink-…` sets the colour, `fill`, `line` and `soft` use it), so
a chart follows the light or dark scheme without being drawn twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Number = float | int


def element(tag: str, *children: str, **attributes: str | Number | None) -> str:
    """An SVG element. Attribute values are escaped, children are markup already; `css` stands for `class`.

    Underscores in attribute names become hyphens; None leaves an attribute out; numbers keep two decimals.
    """
    parts = []
    for name, value in attributes.items():
        if value is None:
            continue
        key = "class" if name == "css" else name if name == "viewBox" else name.replace("_", "-")
        parts.append(f' {key}="{escape(value if isinstance(value, str) else _short(value))}"')
    return f"<{tag}{''.join(parts)}>{''.join(children)}</{tag}>" if children else f"<{tag}{''.join(parts)}/>"


def text(content: str, x: Number, y: Number, css: str = "tick", anchor: str | None = None) -> str:
    """A line of text whose baseline starts (or, by `anchor`, ends or is centred) at the point."""
    return element("text", escape(content), x=x, y=y, css=css, text_anchor=anchor)


def tip(content: str) -> list[str]:
    """The tooltip of the element it is put into; nothing for an empty text."""
    return [element("title", escape(content))] if content else []


def canvas(width: Number, height: Number, label: str, children: Iterable[str]) -> str:
    """The `<svg>` itself; `label` is what a screen reader says."""
    # The name space is an identifier, nothing is fetched from there; inline SVG in HTML works without it, files do not.
    return element(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_short(width)} {_short(height)}",
        role="img",
        aria_label=label,
        css="chart",
    )


MARKERS = ("circle", "square", "diamond", "triangle", "hexagon")


def marker(shape: str, x: Number, y: Number, radius: float = 5, css: str = "fill") -> str:
    """A filled mark centred on the point; the shapes cover about the same area."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=radius, css=css)
    if shape == "square":
        side = radius * 1.8
        return element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, rx=1, css=css)
    sides, turn = {"diamond": (4, 0.0), "triangle": (3, 0.0), "hexagon": (6, 30.0)}[shape]
    reach = radius * {4: 1.3, 3: 1.45, 6: 1.1}[sides]
    angles = [math.radians(turn - 90 + 360 * corner / sides) for corner in range(sides)]
    corners = " ".join(f"{_short(x + reach * math.cos(a))},{_short(y + reach * math.sin(a))}" for a in angles)
    return element("polygon", points=corners, css=css)


def polyline(points: Sequence[tuple[Number, Number]], css: str = "line") -> str:
    """An open line through the points."""
    return element("polyline", points=" ".join(f"{_short(x)},{_short(y)}" for x, y in points), css=css)


def _short(value: Number) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


@dataclass(frozen=True)
class Axis:
    """A titled range, linear or logarithmic. `covering` chooses it from data; both ends are finite and apart."""

    title: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def covering(cls, title: str, values: Iterable[float], *, log: bool = False, zero: bool = False) -> Axis | None:
        """An axis with a little room around the finite values, or None if there are none.

        `log` falls back to linear if a value is not positive; `zero` makes a linear axis start at zero.
        """
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        low, high = min(finite), max(finite)
        if log and low > 0:
            room = max((high / low) ** 0.06, 1.1)
            return cls(title, low / room, high * room, log=True)
        if zero and low >= 0:
            return cls(title, 0.0, high * 1.08 or 1.0)
        room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
        return cls(title, low - room, high + room)

    def place(self, value: float) -> float:
        """Where the value lies between the ends: 0 at `low`, 1 at `high`; beyond them it is held at the end."""
        if self.log:
            share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round values on the axis, each with its text."""
        if self.log:
            values = _log_ticks(self.low, self.high, count)
            if len(values) >= 2:
                return [(value, _power_text(value)) for value in values]
        step = _nice_step((self.high - self.low) / max(count - 1, 1))
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(index * step, f"{index * step:,.{places}f}") for index in range(first, last + 1)]


def _power_text(value: float) -> str:
    """A tick of a logarithmic axis: plain near one, a power of ten far from it."""
    if 1e-4 < value < 1e5:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = round(value / 10.0**power)
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == 1 else f"{factor}·10{raised}"


def _nice_step(step: float) -> float:
    """Of 1, 2, 5 and 10 times the step's power of ten, the one nearest to it in ratio."""
    power = 10.0 ** math.floor(math.log10(step))
    return float(min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / step))) * power)


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, thinned to about `count`; with round values in between where the range is short."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    factors = (1,) if decades > 2.5 else (1, 2, 5) if decades > 1.2 else (1, 2, 3, 5, 7)
    stride = max(1, round((last - first) / count)) if factors == (1,) else 1
    values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors if power % stride == 0]
    return [value for value in values if low <= value <= high]
