"""Several runs next to each other: fronts, warnings, the terminal table."""

from __future__ import annotations

import json
import re

import pytest
from sample_report import RECIPE, sample_report, sample_run, sample_runs

from compress.errors import InputError
from compress.report.compare import Comparison, compare, pareto_front
from compress.report.text import comparison_text, summary_text


def test_pareto_front() -> None:
    costs = [(1.0, 5.0), (2.0, 3.0), (3.0, 3.0), (4.0, 1.0), None, (2.0, 3.0), (5.0, 5.0)]
    assert pareto_front(costs) == [True, True, False, True, False, True, False]
    assert pareto_front([]) == []
    assert pareto_front([None, (1.0, 1.0)]) == [False, True]


def test_fronts_of_the_sample_runs() -> None:
    comparison = compare(sample_runs())
    assert comparison.quality == "class_accuracy"
    assert {run.run: run.fronts for run in comparison.runs} == {
        "digits-dit-w4a8": [],
        "digits-dit-w8a8": ["size", "latency"],
        "digits-dit-w4a8-svdquant": ["size"],
        "digits-dit-w3a8-hqq": ["size"],
        "digits-dit-edge": ["size", "latency"],
        "digits-dit-w8a8-nearest": [],
    }
    assert comparison.warnings == []


def test_quality_is_the_checkpoints_and_latency_that_of_onnx() -> None:
    run = compare([sample_report()]).runs[0]
    assert run.metrics["class_accuracy"].artefact == "checkpoint"
    assert run.metrics["latency_ms"].artefact == "onnx"
    without_onnx = [m for m in sample_report().metrics if m.artefact != "onnx"]
    run = compare([sample_report().model_copy(update={"metrics": without_onnx})]).runs[0]
    assert run.metrics["latency_ms"].artefact == "checkpoint"


def test_a_run_without_measurements_is_on_no_front() -> None:
    bare = sample_report().model_copy(update={"name": "bare", "metrics": [], "gates": []})
    comparison = compare([bare, sample_report()])
    assert [run.fronts for run in comparison.runs] == [[], ["size", "latency"]]
    assert comparison.reference is not None and comparison.reference.metrics["size_bytes"].value == 13_172_864


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare([])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"source": "zoo://digits-dit", "sha256": "other"}}, "made from another model"),
        ({"recipe": RECIPE | {"evaluate": [{"kind": "paired", "n": 64}]}}, "evaluate paired"),
        ({"recipe": RECIPE | {"seed": 1}}, "other settings than digits-dit-w4a8 #1: seed"),
        ({"recipe": RECIPE | {"calibration": {"sampler": {"kind": "euler"}}}}, "sampler"),
        ({"machine": {"cpu": "another"}}, "another machine"),
    ],
)
def test_what_spoils_a_comparison_is_a_warning(change: dict[str, object], words: str) -> None:
    comparison = compare([sample_report(), sample_report().model_copy(update=change)])
    (warning,) = comparison.warnings
    assert words in warning and warning.startswith("digits-dit-w4a8 #2 ")


def test_json_round_trip_leaves_the_pictures_out() -> None:
    comparison = compare(sample_runs())
    text = comparison.model_dump_json()
    assert "png_base64" not in text
    assert json.loads(text)["schema_version"] == 1
    again = Comparison.model_validate_json(text)
    assert again.runs[1].metrics == comparison.runs[1].metrics


def test_table_fits_a_hundred_columns_and_names_survive_in_pieces() -> None:
    text = comparison_text(compare([*sample_runs(), sample_run("q" * 60, "fp8_e4m3", 0.25, 0.97, 3.3)]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert {"reference", "digits-dit-edge"} <= {word for line in lines for word in line.split()}
    pieces = re.findall(r"q{3,}", text)
    assert sum(map(len, pieces)) == 60
    row = next(line for line in lines if " digits-dit-w8a8 " in line)
    assert row.startswith("SL") and "0.979±0.010" in row and row.endswith("2/2 ✓")
    assert "S  no run is smaller and has better class accuracy" in lines


def test_empty_columns_are_left_out() -> None:
    metrics = [m for m in sample_report().metrics if m.name not in ("psnr", "latency_ms", "latency_speedup")]
    report = sample_report().model_copy(update={"metrics": metrics, "gates": []})
    text = comparison_text(compare([report]))
    assert "psnr" not in text and "time" not in text
    assert "class" in text


def test_tables_of_bare_runs_still_print() -> None:
    bare = sample_report().model_copy(update={"metrics": [], "gates": [], "recipe": {}})
    assert "digits-dit-w4a8" in comparison_text(compare([bare]))
    assert summary_text(bare).startswith("digits-dit-w4a8: No gates were set\n")


def test_summary_has_verdict_and_every_main_value() -> None:
    text = summary_text(sample_report())
    assert text.startswith("digits-dit-w4a8: 1 of 4 gates missed\n✗ size_ratio of checkpoint is 0.243")
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("class_accuracy "))
    assert row.split() == ["class_accuracy", "0.979", "0.970…0.988", "0.973", "0.963…0.983", "0.969", "0.948…0.990"]
