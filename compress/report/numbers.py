"""Numbers for people: digits tied to the spread, readable bytes, seconds and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from compress.report.metrics import TIMES, metric_info
from compress.report.model import Metric

MISSING = "\u2013"
"""What stands where nothing was measured: a dash."""


class Spread(NamedTuple):
    """An interval around a value and what it is: `95 % CI`, `quartiles`, `±1 sd`."""

    low: float
    high: float
    kind: str


def spread_of(value: float, spread: Mapping[str, float]) -> Spread | None:
    """The interval that a metric's `spread` describes, or None if it holds none of the known keys."""
    if {"ci95_low", "ci95_high"} <= spread.keys():
        found = Spread(spread["ci95_low"], spread["ci95_high"], "95 % CI")
    elif "ci95" in spread:
        found = Spread(value - spread["ci95"], value + spread["ci95"], "95 % CI")
    elif {"q1", "q3"} <= spread.keys():
        found = Spread(spread["q1"], spread["q3"], "quartiles")
    elif "std" in spread:
        found = Spread(value - spread["std"], value + spread["std"], "±1 sd")
    elif {"min", "max"} <= spread.keys() and spread["min"] < spread["max"]:  # one run has no range
        found = Spread(spread["min"], spread["max"], "range")
    else:
        return None
    return found if math.isfinite(found.low) and math.isfinite(found.high) else None


def decimals_for(value: float, half_width: float | None = None, digits: int = 3) -> int:
    """Decimal places worth showing; negative never.

    With a spread: up to the first digit of its half-width, one more if that digit is 1 or 2 (so 0.9731 ± 0.0101 keeps
    three places). Without one: `digits` significant digits.
    """
    magnitude = half_width if half_width is not None and half_width > 0 else abs(value)
    if not math.isfinite(magnitude) or magnitude == 0:
        return 0 if magnitude else digits - 1
    if magnitude == abs(value):  # rounding may carry into the next power of ten: 0.9996 becomes 1.00
        magnitude = float(f"{magnitude:.{digits - 1}e}")
    exponent = math.floor(math.log10(magnitude))
    if half_width is not None and half_width > 0:
        extra = 1 if magnitude / 10**exponent < 3 else 0
        return min(max(extra - exponent, 0), 12)
    return min(max(digits - 1 - exponent, 0), 12)


def plain(value: float | None, decimals: int | None = None, digits: int = 3) -> str:
    """A number as text: grouped thousands, a power of ten only where places would hide it, words for NaN and ∞."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    if value == 0 and decimals is None:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and decimals is None and not 1e-4 <= abs(value) < 1e15:
        return _power(value, digits)
    text = f"{value:,.{decimals_for(value, digits=digits) if decimals is None else decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def _scaled(value: float, base_units: tuple[str, ...], digits: int) -> str:
    """`value` in the largest of the units (each 1000 of the last) that leaves at least one before the point."""
    power = 0
    while abs(value) >= 999.5 and power + 1 < len(base_units):
        value, power = value / 1000, power + 1
    if power == 0:
        return f"{plain(value, 0)} {base_units[0]}".rstrip()
    return f"{plain(value, digits=digits)} {base_units[power]}"


def bytes_text(count: float | None, digits: int = 3) -> str:
    """Bytes in decimal units, `3.21 MB`."""
    if count is None or not math.isfinite(count):
        return plain(count)
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"), digits)


def count_text(count: float | None, digits: int = 3) -> str:
    """A large count with its prefix, `1.23 G`."""
    if count is None or not math.isfinite(count):
        return plain(count)
    return _scaled(count, ("", "k", "M", "G", "T", "P"), digits)


def seconds_text(seconds: float | None) -> str:
    """A duration: `85 ms`, `12.3 s`, `4 min 10 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return plain(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Shown(NamedTuple):
    """A metric ready to print: the value with its unit, and the spread in words ("" if there is none)."""

    value: str
    spread: str


def shown(metric: Metric) -> Shown:
    """The text of a metric, its digits no finer than its spread can bear."""
    unit = metric_info(metric.name, metric.unit).unit
    spread = spread_of(metric.value, metric.spread)
    if unit == "bytes":
        return Shown(bytes_text(metric.value), _span(spread, bytes_text))
    if unit == "s":
        return Shown(seconds_text(metric.value), _span(spread, seconds_text))
    if abs(metric.value) >= 1e5:
        return Shown(f"{count_text(metric.value)} {unit}".rstrip(), _span(spread, count_text))
    half = (spread.high - spread.low) / 2 if spread else None
    decimals = decimals_for(metric.value, half) if half and math.isfinite(metric.value) else None
    if decimals is not None and half is not None and metric.value and max(abs(metric.value), half) < 1e-3:
        digits = min(max(decimals + math.floor(math.log10(abs(metric.value))) + 1, 2), 4)
        return Shown(f"{_power(metric.value, digits)} {unit}".rstrip(), _span(spread, lambda x: _power(x, digits)))
    glued = "" if unit == TIMES else " "
    value = f"{plain(metric.value, decimals)}{glued}{unit}".rstrip()
    return Shown(value, _span(spread, lambda bound: plain(bound, decimals)))


def _power(value: float, digits: int) -> str:
    """`3.10e-6`: a mantissa of so many digits and a power of ten."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _span(spread: Spread | None, text: Callable[[float], str]) -> str:
    return f"{text(spread.low)} to {text(spread.high)}" if spread and spread.low < spread.high else ""


def cell_text(value: str | float | int | None, column: str = "") -> str:
    """A table cell for people; a column with `bytes` in its name gets readable bytes, integers keep every digit."""
    if isinstance(value, str):
        return value
    if value is not None and "bytes" in column.lower():
        return bytes_text(value)
    return f"{value:,}" if isinstance(value, int) else plain(value)


def measured_text(value: float | None) -> str:
    """The measured side of a gate, in four digits."""
    if value is None:
        return "not measured"
    return plain(value) if not math.isfinite(value) or abs(value) >= 1e4 else f"{value:.4g}"


def fact_texts(facts: Mapping[str, str | float | int | None]) -> list[tuple[str, str]]:
    """Facts as (name, value) for people, `memory_gb: 16.8` as memory, 16.8 GB; those without a value are left out."""
    texts = []
    for key, value in facts.items():
        if isinstance(value, str):
            texts.append((key.replace("_", " "), value))
        elif value is not None:
            name, _, unit = key.rpartition("_")
            if name and unit in _FACT_UNITS:
                texts.append((name.replace("_", " "), _FACT_UNITS[unit](value)))
            else:
                texts.append((key.replace("_", " "), cell_text(value, key)))
    return texts


_FACT_UNITS: dict[str, Callable[[float], str]] = {
    "gb": lambda value: f"{plain(value)} GB",
    "mb": lambda value: f"{plain(value)} MB",
    "ms": lambda value: f"{plain(value)} ms",
    "bytes": bytes_text,
    "seconds": seconds_text,
}
