"""What the charts, cards and views make of a report."""

from __future__ import annotations

import math
import re

import pytest
from sample_report import RECIPE, sample_report

from compress.report.cards import headline_cards
from compress.report.charts import bytes_chart, latency_chart, noise_error_chart, quality_size_chart
from compress.report.model import Artefact, Metric, Report
from compress.report.tables import bytes_table
from compress.report.view import (
    bands,
    breakdowns,
    class_bytes,
    floors,
    formats_of,
    main_rows,
    methods_of,
    quality_metric,
)


def with_metrics(*metrics: Metric) -> Report:
    return sample_report().model_copy(update={"metrics": list(metrics), "gates": [], "tables": []})


def metric(name: str, value: float, artefact: Artefact = "checkpoint", **labels: str) -> Metric:
    return Metric(name=name, value=value, artefact=artefact, labels=labels)


def band(index: int, low: float, high: float, value: float = 0.1) -> Metric:
    return metric("noise_error", value, band=str(index), sigma_low=f"{low:.6g}", sigma_high=f"{high:.6g}")


def test_gates_are_lines_in_the_quality_chart() -> None:
    chart = quality_size_chart(sample_report())
    assert chart is not None
    assert "gate 0.2 of fp32" in chart.svg and "gate: at most 0.01 below reference" in chart.svg
    assert chart.svg.count('class="guide"') == 2


def test_no_quality_no_chart() -> None:
    assert quality_size_chart(with_metrics(metric("size_bytes", 1e6))) is None
    assert noise_error_chart(with_metrics()) is None
    assert latency_chart(with_metrics(metric("latency_ms", math.nan))) is None
    assert headline_cards(with_metrics()) == []


def test_bands_sort_by_sigma_and_join_the_floor() -> None:
    floor = metric("noise_error", 1e-9, "reference", band="0", sigma_low="0.1", sigma_high="1", floor="threads 1 and 2")
    found = bands(with_metrics(band(1, 1, 10), band(0, 0.1, 1), floor, metric("noise_error", 0.3)))
    assert [(b.name, b.low, b.high, b.range_text) for b in found] == [
        ("0", 0.1, 1.0, "0.100 to 1.00"),
        ("1", 1.0, 10.0, "1.00 to 10.0"),
    ]
    assert set(found[0].cells) == {"checkpoint", "reference"}


@pytest.mark.parametrize(
    "found",
    [
        [band(0, 0.0, 0.5), band(1, 0.5, math.inf)],  # a flow model: from no noise to nothing but noise
        [band(0, 0.3, 0.3), band(1, 0.7, 0.7)],  # a sampler of two steps: one level a band
        [band(0, 0.1, 1, 0.0), band(1, 1, 10, 0.2)],  # an error of zero has no logarithm
        [band(0, 0.1, 1, math.nan), band(1, 1, 10, 0.2)],
        [band(0, 0.0, 0.0)],
    ],
)
def test_odd_bands_can_be_drawn(found: list[Metric]) -> None:
    chart = noise_error_chart(with_metrics(*found))
    assert chart is not None
    assert chart.svg.count("<circle") == sum(math.isfinite(m.value) and m.value > 0 for m in found)
    assert not re.search(r'"[^"<>]*(?:nan|inf)[^"<>]*"', chart.svg)


def test_errors_of_zero_leave_the_axis_logarithmic_and_are_mentioned() -> None:
    floor = metric("noise_error", 0.0, "reference", band="0", sigma_low="0.1", sigma_high="1", floor="threads 1 and 2")
    chart = noise_error_chart(with_metrics(band(0, 0.1, 1, 0.01), band(1, 1, 10, 0.2), floor))
    assert chart is not None
    assert "exactly zero" in chart.note and chart.svg.count("<circle") == 2 and "<rect" not in chart.svg
    nothing = noise_error_chart(with_metrics(band(0, 0.1, 1, 0.0)))
    assert nothing is not None and nothing.svg.count("<circle") == 1


def test_a_ratio_gate_counts_from_fp32_though_the_original_is_stored_in_half() -> None:
    report = sample_report()
    halved = [
        m.model_copy(update={"value": m.value / 2}) if (m.name, m.artefact) == ("size_bytes", "reference") else m
        for m in report.metrics
    ]
    chart = quality_size_chart(report.model_copy(update={"metrics": halved}))
    full = quality_size_chart(report)
    assert chart is not None and full is not None
    card = headline_cards(report.model_copy(update={"metrics": halved}))[0]
    assert (card.value, card.words) == ("4.11\u00d7", "smaller than fp32")
    assert headline_cards(report)[0].words == "smaller"
    # The axis is half as wide now, so the same bytes lie twice as far along it.
    places = [float(re.findall(r'<line x1="([\d.]+)"[^>]*class="guide"', c.svg)[0]) - 58 for c in (full, chart)]
    assert places[1] == pytest.approx(2 * places[0], rel=0.02)


def test_bands_without_sigma_become_bars() -> None:
    chart = noise_error_chart(
        with_metrics(metric("noise_error", 0.2, band="low"), metric("noise_error", 0.1, band="high"))
    )
    assert chart is not None
    assert "band low, checkpoint" in chart.svg


def test_bytes_come_from_the_table_or_from_the_metrics() -> None:
    report = sample_report()
    table = class_bytes(report)
    assert table is not None and table.columns == ["tensor class", "reference", "checkpoint"]
    own = bytes_table({"onnx": {"codes": 5, "scales": 9}})
    assert own.rows == [["scales", 9], ["codes", 5]]
    assert class_bytes(report.model_copy(update={"tables": [own]})) == own
    assert class_bytes(with_metrics()) is None


def test_many_classes_are_drawn_as_other() -> None:
    sizes = {f"class {index}": 100 - index for index in range(12)}
    chart = bytes_chart(bytes_table({"checkpoint": sizes}))
    assert chart is not None
    assert [key.name for key in chart.keys] == [*(f"class {index}" for index in range(6)), "other"]
    assert f"other: {sum(100 - i for i in range(6, 12))} B" in chart.svg
    assert bytes_chart(bytes_table({"checkpoint": {"codes": 0}})) is None


def test_sizes_against_fp16_follow_the_main_value() -> None:
    rows = [(row.name, row.labels) for row in main_rows(sample_report())]
    assert rows[:3] == [("size_bytes", ()), ("size_ratio", ()), ("size_ratio", ("fp16",))]
    assert rows == [*rows[:3], *((name, ()) for name, _ in rows[3:])]


def test_breakdowns_hold_what_has_no_other_place() -> None:
    assert [(found.name, found.keys) for found in breakdowns(sample_report())] == [("class_accuracy", ("category",))]
    assert {found.name for found in floors(sample_report())} == {"psnr", "noise_error"}


def test_cards_and_their_gates() -> None:
    cards = {card.label: card for card in headline_cards(sample_report())}
    assert list(cards) == ["Size", "Class accuracy", "PSNR", "Fréchet distance", "Latency"]
    assert [card.gate for card in cards.values()] == ["missed", "met", "met", "", "met"]
    assert cards["Size"].lines == ["3.20 MB instead of 13.2 MB", "0.243 of fp32, 0.487 of fp16", "4.51 bits per weight"]
    assert cards["Class accuracy"].lines[0] == "reference 97.9 %, 0.6 points lower"


def test_a_slower_artefact_is_called_slower() -> None:
    report = with_metrics(metric("latency_ms", 5.0, "reference"), metric("latency_ms", 10.0, "checkpoint"))
    (card,) = headline_cards(report)
    assert (card.value, card.words) == ("2.00\u00d7", "slower")


def test_formats_and_methods_of_recipes() -> None:
    assert formats_of(RECIPE) == ("int4 g64", "int8")
    assert methods_of(RECIPE) == "quantize gptq"
    mixed = {"kind": "quantize", "weights": {"budget": {"average_bits": 3.7}}, "activations": {"format": "none"}}
    assert formats_of({"stages": [{"kind": "prune", "method": {"kind": "tinyfusion"}}, mixed]}) == ("mixed 3.7", "none")
    text_encoder = {"kind": "quantize", "component": "text_encoder", "weights": {"format": "int8"}}
    assert formats_of({"stages": [text_encoder]}) == formats_of({}) == formats_of({"stages": 3})


def test_quality_is_the_metric_that_most_runs_have() -> None:
    accuracy, likeness = metric("class_accuracy", 0.9), metric("psnr", 20)
    assert quality_metric([with_metrics(accuracy, likeness)]) == "class_accuracy"
    assert quality_metric([with_metrics(accuracy, likeness), with_metrics(likeness)]) == "psnr"
    assert quality_metric([with_metrics()]) is None
