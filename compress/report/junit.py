"""JUnit XML of a report: one test case a gate, so that any CI system shows what was missed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from compress.report.gates import bounds_text
from compress.report.model import GateResult, Report

# XML 1.0, production 2: the characters that a document may contain. ElementTree escapes markup but lets others through.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def report_junit(report: Report) -> str:
    """The report's gates as a JUnit document. Without gates it holds one passing case: some CI systems refuse none."""
    missed = sum(not gate.passed for gate in report.gates)
    seconds = sum(stage.seconds for stage in report.stages if math.isfinite(stage.seconds))
    counts = {"tests": str(max(len(report.gates), 1)), "failures": str(missed), "errors": "0", "skipped": "0"}
    root = _element(None, "testsuites", {"name": "compress", **counts, "time": f"{seconds:.3f}"})
    moment = report.created.removesuffix("Z").removesuffix("+00:00")
    suite = _element(root, "testsuite", {"name": report.name, **counts, "time": f"{seconds:.3f}", "timestamp": moment})
    properties = _element(suite, "properties", {})
    for name, value in _properties(report).items():
        _element(properties, "property", {"name": name, "value": value})
    for gate in report.gates:
        _case(suite, report.name, gate)
    if not report.gates:
        _element(suite, "testcase", {"classname": _classname(report.name), "name": "run completed", "time": "0"})
    if report.warnings:
        _element(suite, "system-out", {}).text = _clean("\n".join(report.warnings))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _case(suite: ElementTree.Element, run: str, gate: GateResult) -> None:
    labels = "".join(f" {key}={value}" for key, value in gate.labels.items())
    name = f"{gate.metric}{labels} of {gate.artefact} is {bounds_text(gate.minimum, gate.maximum)}"
    case = _element(suite, "testcase", {"classname": _classname(run), "name": name, "time": "0"})
    if gate.passed:
        _element(case, "system-out", {}).text = _clean(gate.message)
    else:
        kind = "not measured" if gate.value is None else "gate missed"
        _element(case, "failure", {"message": gate.message, "type": kind}).text = _clean(gate.message)


def _classname(run: str) -> str:
    # CI systems split class names at dots into packages.
    return f"compress.gates.{run.replace('.', '_')}"


def _properties(report: Report) -> dict[str, str]:
    properties = {"name": report.name, "compress_version": report.compress_version, "created": report.created}
    for group, facts in (("model", report.model), ("machine", report.machine)):
        properties |= {f"{group}.{key}": str(value) for key, value in facts.items() if value is not None}
    return properties


def _element(parent: ElementTree.Element | None, tag: str, attributes: Mapping[str, str]) -> ElementTree.Element:
    cleaned = {key: _clean(value) for key, value in attributes.items()}
    return ElementTree.Element(tag, cleaned) if parent is None else ElementTree.SubElement(parent, tag, cleaned)


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
