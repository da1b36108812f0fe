"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from compress.report.model import Metric
from compress.report.numbers import (
    MISSING,
    bytes_text,
    cell_text,
    count_text,
    fact_texts,
    measured_text,
    plain,
    seconds_text,
    shown,
    spread_of,
)


def measured(name: str, value: float, **spread: float) -> Metric:
    return Metric(name=name, value=value, spread=spread, artefact="checkpoint")


@pytest.mark.parametrize(
    ("value", "half", "text", "spread"),
    [
        (0.9731, 0.0101, "0.973", "0.963 to 0.983"),  # half-width begins with 1: one digit more
        (0.9731, 0.0301, "0.97", "0.94 to 1.00"),
        (24.83, 0.42, "24.8", "24.4 to 25.2"),
        (1234.5, 31.0, "1,234", "1,204 to 1,266"),
        (0.00041, 0.00022, "4.1e-4", "1.9e-4 to 6.3e-4"),
        (0.0004, 0.0072, "0.000", "-0.007 to 0.008"),  # a small value with a wide interval stays a plain number
        (3.2e-13, 2e-14, "3.2e-13", "3.0e-13 to 3.4e-13"),
        (0.0, 0.013, "0.000", "-0.013 to 0.013"),
    ],
)
def test_digits_follow_the_spread(value: float, half: float, text: str, spread: str) -> None:
    assert shown(measured("ssim", value, ci95_low=value - half, ci95_high=value + half)) == (text, spread)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("size_bytes", 3_204_592, "3.20 MB"),
        ("psnr", 24.83, "24.8 dB"),
        ("psnr", math.inf, "∞ dB"),
        ("latency_speedup", 1.832, "1.83\u00d7"),
        ("compress_seconds", 254.3, "4 min 14 s"),
        ("macs", 210_300_928, "210 M"),
        ("onnx_error", 3.1e-6, "3.10e-6"),
        ("ssim", math.nan, "NaN"),
        ("kid", 0.0, "0"),
    ],
)
def test_units_and_significant_digits_without_a_spread(name: str, value: float, text: str) -> None:
    assert shown(measured(name, value)) == (text, "")


def test_an_interval_without_width_is_left_out() -> None:
    assert shown(measured("noise_error", 0.0, ci95_low=0.0, ci95_high=0.0)) == ("0", "")


def test_an_unknown_metric_keeps_its_unit() -> None:
    assert shown(Metric(name="weight", value=2.0, unit="kg", artefact="onnx")).value == "2.00 kg"


def test_spreads_of_every_kind() -> None:
    assert spread_of(1.0, {"ci95_low": 0.5, "ci95_high": 2.0, "std": 9.0}) == (0.5, 2.0, "95 % CI")
    assert spread_of(1.0, {"ci95": 0.5}) == (0.5, 1.5, "95 % CI")
    assert spread_of(1.0, {"q1": 0.9, "q3": 1.2}) == (0.9, 1.2, "quartiles")
    assert spread_of(1.0, {"std": 0.5}) == (0.5, 1.5, "±1 sd")
    assert spread_of(1.0, {"min": 0.0, "max": 3.0}) == (0.0, 3.0, "range")
    assert spread_of(1.0, {"min": 1.0, "max": 1.0}) is None  # one run
    assert spread_of(1.0, {"other": 3.0}) is None
    assert spread_of(1.0, {"ci95_low": math.nan, "ci95_high": 2.0}) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_600, "1.00 MB"), (2.5e13, "25.0 TB")],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0853, "85 ms"), (12.34, "12.3 s"), (59.96, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_missing_and_odd_values() -> None:
    assert plain(None) == bytes_text(None) == count_text(None) == seconds_text(None) == MISSING
    assert plain(-math.inf) == "-∞"
    assert plain(-0.0001, 2) == "0.00", "no minus sign in front of zero"
    assert plain(1e20) == "1.00e20"
    assert count_text(12) == "12"
    assert measured_text(None) == "not measured" and measured_text(0.0059) == "0.0059"


def test_table_cells() -> None:
    assert cell_text("x") == "x"
    assert cell_text(1234567) == "1,234,567"
    assert cell_text(147456, "bytes before") == "147 kB"
    assert cell_text(0.08134) == "0.0813"
    assert cell_text(None) == MISSING


def test_facts_read_their_unit_from_their_name() -> None:
    facts = {"memory_gb": 16.8, "cores": 2, "gpu": None, "load_seconds": 0.25, "cpu_capability": "AVX2"}
    expected = [("memory", "16.8 GB"), ("cores", "2"), ("load", "250 ms"), ("cpu capability", "AVX2")]
    assert fact_texts(facts) == expected
