"""Reports on disk."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_report import sample_report, sample_runs

from compress.errors import InputError, OutputError
from compress.report.compare import Comparison, compare
from compress.report.model import REPORT_SCHEMA, Metric, Report
from compress.report.write import load_report, write_comparison, write_report


def test_round_trip_and_files(tmp_path: Path) -> None:
    report = sample_report()
    files = write_report(report, tmp_path / "run" / "report")
    assert [path.name for path in files] == ["report.json", "report.md", "report.html", "junit.xml"]
    assert sorted(path.name for path in files.json.parent.iterdir()) == sorted(path.name for path in files)
    assert load_report(files.json) == load_report(files.json.parent) == load_report(tmp_path / "run") == report
    assert ElementTree.parse(files.junit).getroot().tag == "testsuites"
    assert files.html.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_report(sample_report(), tmp_path)
    write_report(sample_report().model_copy(update={"name": "second"}), tmp_path)
    assert load_report(tmp_path).name == "second"
    assert len(list(tmp_path.iterdir())) == 4


def test_infinite_and_undefined_values_survive(tmp_path: Path) -> None:
    metrics = [
        Metric(
            name="psnr", value=math.inf, artefact="checkpoint", spread={"ci95_low": math.nan, "ci95_high": math.inf}
        ),
        Metric(name="kid", value=math.nan, artefact="checkpoint"),
        Metric(name="ssim", value=-math.inf, artefact="onnx"),
    ]
    files = write_report(sample_report().model_copy(update={"metrics": metrics}), tmp_path)
    json.loads(files.json.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    psnr, kid, ssim = load_report(tmp_path).metrics
    assert psnr.value == math.inf and math.isnan(kid.value) and ssim.value == -math.inf
    assert math.isnan(psnr.spread["ci95_low"])


def test_comparison_files(tmp_path: Path) -> None:
    files = write_comparison(compare(sample_runs()), tmp_path)
    assert [path.name for path in files] == ["comparison.json", "comparison.md", "comparison.html"]
    assert len(Comparison.model_validate_json(files.json.read_text(encoding="utf-8")).runs) == 6


def test_a_failed_replacement_leaves_the_old_file_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(sample_report(), tmp_path)

    def fail(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left") as error:
        write_report(sample_report().model_copy(update={"name": "second"}), tmp_path)
    assert error.value.exit_code == 3
    assert load_report(tmp_path).name == "digits-dit-w4a8"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_in_the_folders_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        write_report(sample_report(), tmp_path / "taken")


def written(tmp_path: Path, change: dict[str, object] | None = None, text: str | None = None) -> Path:
    path = tmp_path / "report.json"
    data = json.loads(sample_report().model_dump_json()) | (change or {})
    path.write_text(json.dumps(data) if text is None else text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": REPORT_SCHEMA + 1}, "written in schema version 2, and this compress reads up to 1"),
        ({"schema_version": REPORT_SCHEMA + 1, "unheard_of": 1}, "schema version 2"),
        ({"schema_version": "1"}, "no schema_version"),
        ({"schema_version": True}, "no schema_version"),
        ({"surplus": 1}, "at `surplus`"),
        ({"metrics": [{"name": "psnr", "value": 1.0, "artefact": "chekpoint"}]}, "at `metrics.0.artefact`"),
        ({"name": 3}, "at `name`"),
    ],
)
def test_reports_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        load_report(written(tmp_path, change))
    assert words in str(error.value) and "report.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "null"])
def test_files_that_are_no_report_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"report\.json"):
        load_report(written(tmp_path, text=text))


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no readable report"):
        load_report(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no report"):
        load_report(tmp_path / "empty")


def test_find_wants_exactly_the_labels() -> None:
    report: Report = sample_report()
    assert report.find("class_accuracy", "checkpoint") is not None
    assert report.find("class_accuracy", "checkpoint", category="3") is not None
    assert report.find("class_accuracy", "checkpoint", category="12") is None
