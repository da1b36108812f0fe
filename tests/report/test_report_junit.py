"""JUnit XML: structure, counts, escaping."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from sample_report import sample_report

from compress.report.junit import report_junit
from compress.report.model import GateResult


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.encode("utf-8"))


def test_one_case_per_gate_and_a_failure_for_the_missed_one() -> None:
    report = sample_report()
    root = parsed(report_junit(report))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert suite.get("name") == "digits-dit-w4a8"
    assert len(cases) == len(report.gates) == int(suite.get("tests", "0")) == int(root.get("tests", "0"))
    failures = [failure for case in cases for failure in case.findall("failure")]
    assert suite.get("failures") == "1" and len(failures) == 1
    assert failures[0].get("message") == "size_ratio of checkpoint is 0.243, above the allowed 0.2"
    assert float(suite.get("time", "")) == pytest.approx(sum(stage.seconds for stage in report.stages))


def test_properties_hold_name_version_and_machine() -> None:
    suite = parsed(report_junit(sample_report()))[0]
    properties = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert properties["name"] == "digits-dit-w4a8"
    assert properties["compress_version"] == "0.1.0"
    assert properties["machine.cores"] == "2"
    assert "machine.gpu" not in properties
    assert suite[0].tag == "properties"


def test_case_names_are_distinct_and_class_names_have_no_stray_dots() -> None:
    report = sample_report().model_copy(update={"name": "a.b"})
    cases = parsed(report_junit(report)).findall("testsuite/testcase")
    assert len({case.get("name") for case in cases}) == len(cases)
    assert {case.get("classname") for case in cases} == {"compress.gates.a_b"}


def test_markup_and_control_characters_survive_as_text() -> None:
    message = 'psnr < 3 & "x" > \x00\x1b]0;y\ufffe is bad'
    gate = GateResult(metric="psnr", artefact="onnx", minimum=3, value=None, passed=False, message=message)
    report = sample_report().model_copy(update={"gates": [gate], "name": "<&>", "warnings": ["a\x0bb"]})
    suite = parsed(report_junit(report))[0]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == 'psnr < 3 & "x" > \ufffd\ufffd]0;y\ufffd is bad'
    assert failure.get("type") == "not measured"
    assert suite.get("name") == "<&>"
    assert suite.findtext("system-out") == "a\ufffdb"


def test_a_run_without_gates_still_has_a_case() -> None:
    report = sample_report().model_copy(update={"gates": [], "warnings": []})
    suite = parsed(report_junit(report))[0]
    assert suite.get("tests") == "1" and suite.get("failures") == "0"
    assert [case.get("name") for case in suite.findall("testcase")] == ["run completed"]
