"""Gates: their settings, and the judgement of metrics by them."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from compress.report.gates import Gate, bounds_text, judge
from compress.report.metrics import METRICS, metric_info, suggest_metric
from compress.report.model import Artefact, GateResult, Metric


def ratio(value: float, artefact: Artefact = "checkpoint", **labels: str) -> Metric:
    return Metric(name="size_ratio", value=value, artefact=artefact, labels=labels)


def only(gate: Gate, *metrics: Metric) -> GateResult:
    (result,) = judge([gate], metrics)
    return result


def test_missed_gate_names_metric_artefact_value_and_bound() -> None:
    result = only(Gate(metric="size_ratio", max=0.2), ratio(0.2434))
    assert not result.passed
    assert result.message == "size_ratio of checkpoint is 0.243, above the allowed 0.2"
    assert (result.value, result.minimum, result.maximum) == (0.2434, None, 0.2)


def test_minimum_is_missed_below() -> None:
    result = only(Gate(metric="psnr", artefact="onnx", min=22), Metric(name="psnr", value=21.5, artefact="onnx"))
    assert not result.passed
    assert result.message == "psnr of onnx is 21.5, below the required 22"


@pytest.mark.parametrize(
    ("value", "passed"), [(0.1, True), (0.2, True), (0.15, True), (0.0999, False), (0.2001, False)]
)
def test_bounds_are_allowed_values(value: float, passed: bool) -> None:
    assert only(Gate(metric="size_ratio", min=0.1, max=0.2), ratio(value)).passed is passed


def test_message_has_digits_enough_to_tell_value_from_bound() -> None:
    assert "is 0.20001, above the allowed 0.2" in only(Gate(metric="size_ratio", max=0.2), ratio(0.20001)).message
    smallest = math.nextafter(0.2, 1)
    assert str(smallest) in only(Gate(metric="size_ratio", max=0.2), ratio(smallest)).message


def test_missing_value_fails_and_says_what_would_measure_it() -> None:
    result = only(Gate(metric="class_accuracy_drop", max=0.01))
    assert not result.passed and result.value is None
    assert "was not measured" in result.message and "{kind: generation}" in result.message


def test_missing_value_says_where_it_was_measured_instead() -> None:
    result = only(Gate(metric="size_ratio", artefact="onnx", max=0.2), ratio(0.1))
    assert not result.passed
    assert "only that of checkpoint" in result.message


def test_labels_choose_the_value_and_the_main_value_has_none() -> None:
    metrics = (ratio(0.9, band="3"), ratio(0.1))
    assert only(Gate(metric="size_ratio", max=0.2), *metrics).value == 0.1
    labelled = only(Gate(metric="size_ratio", max=0.2, labels={"band": "3"}), *metrics)
    assert labelled.value == 0.9 and "size_ratio (band 3) of checkpoint" in labelled.message
    assert labelled.labels == {"band": "3"}


@pytest.mark.parametrize("bounds", [{"max": 0.2}, {"min": 0.2}, {"min": 0.1, "max": 0.2}])
def test_nan_fails_every_gate(bounds: dict[str, float]) -> None:
    result = only(Gate(metric="size_ratio", **bounds), ratio(math.nan))
    assert not result.passed and "not a number" in result.message


def test_infinity_is_a_value() -> None:
    infinite = Metric(name="psnr", value=math.inf, artefact="checkpoint")
    assert only(Gate(metric="psnr", min=20), infinite).passed
    assert not only(Gate(metric="psnr", max=20), infinite).passed


def test_results_keep_the_order_of_the_gates() -> None:
    gates = [Gate(metric="psnr", min=1), Gate(metric="size_ratio", max=1), Gate(metric="kid", max=1)]
    assert [result.metric for result in judge(gates, [])] == ["psnr", "size_ratio", "kid"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "size_ration", "max": 1}, "did you mean size_ratio?"),
        ({"metric": "zzz", "max": 1}, "known metrics: size_bytes"),
        ({"metric": "psnr"}, "has no bound"),
        ({"metric": "psnr", "min": 2, "max": 1}, "lets nothing pass"),
        ({"metric": "psnr", "min": math.nan}, "finite"),
        ({"metric": "psnr", "min": 1, "artefact": "checkpiont"}, "checkpoint"),
        ({"metric": "psnr", "min": 1, "maximum": 2}, "maximum"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        Gate.model_validate(settings)
    assert words in str(error.value)


def test_settings_are_frozen() -> None:
    gate = Gate(metric="psnr", min=1)
    assert gate.artefact == "checkpoint"
    with pytest.raises(ValidationError):
        gate.__setattr__("min", 2.0)


def test_bounds_in_words() -> None:
    assert bounds_text(None, 0.2) == "at most 0.2"
    assert bounds_text(0.9, None) == "at least 0.9"
    assert bounds_text(0.1, 0.2) == "between 0.1 and 0.2"


def test_the_fixed_metrics_are_all_known() -> None:
    fixed = """size_bytes size_ratio class_accuracy class_accuracy_drop alignment alignment_drop frechet_distance
        frechet_increase kid psnr ssim noise_error bits_per_weight temporal_error latency_ms latency_speedup
        peak_rss_mb macs bops parameters compress_seconds onnx_error"""
    assert set(METRICS) == set(fixed.split())
    assert all(info.description and info.measured_by for info in METRICS.values())


def test_an_unknown_metric_is_neutral() -> None:
    assert metric_info("clip_score", "points").direction == "neutral"
    assert metric_info("clip_score", "points").unit == "points"
    assert suggest_metric("PSNR") == "did you mean psnr?"
