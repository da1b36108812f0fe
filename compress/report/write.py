"""Reports on disk: written whole or not at all, read strictly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from compress.errors import InputError, OutputError
from compress.report.compare import Comparison
from compress.report.compare_html import comparison_html
from compress.report.compare_markdown import comparison_markdown
from compress.report.html import report_html
from compress.report.junit import report_junit
from compress.report.markdown import report_markdown
from compress.report.model import REPORT_SCHEMA, Report


class ReportFiles(NamedTuple):
    """Where a report was written to."""

    json: Path
    markdown: Path
    html: Path
    junit: Path


class ComparisonFiles(NamedTuple):
    """Where a comparison was written to."""

    json: Path
    markdown: Path
    html: Path


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write report.json, report.md, report.html and junit.xml; everything is rendered before anything is written.

    Raises:
        OutputError: the folder or a file cannot be written; files already there are then whole, old or new.
    """
    texts = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": report_markdown(report),
        "report.html": report_html(report),
        "junit.xml": report_junit(report),
    }
    return ReportFiles(*_write(texts, folder))


def write_comparison(comparison: Comparison, folder: Path) -> ComparisonFiles:
    """Write comparison.json, comparison.md and comparison.html.

    Raises:
        OutputError: the folder or a file cannot be written.
    """
    texts = {
        "comparison.json": comparison.model_dump_json(indent=2) + "\n",
        "comparison.md": comparison_markdown(comparison),
        "comparison.html": comparison_html(comparison),
    }
    return ComparisonFiles(*_write(texts, folder))


def load_report(path: Path) -> Report:
    """The report in a file, or in a folder that holds report.json or report/report.json (a run's output folder).

    Raises:
        InputError: there is no report, it is not JSON, a newer version wrote it, or it does not fit the schema.
    """
    file = _find(Path(path))
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"is no readable report: {error}", where=str(file)) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError("is no report: it has no schema_version", where=str(file))
    if version > REPORT_SCHEMA:
        message = f"was written in schema version {version}, and this compress reads up to {REPORT_SCHEMA}"
        raise InputError(message, where=str(file), hint="read it with the compress that wrote it, or a newer one")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"does not fit the report's schema at `{place}`: {first['msg']}", where=str(file)) from error


def _find(path: Path) -> Path:
    candidates = [path, path / "report.json", path / "report" / "report.json"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        hint = "give a report.json, or the output folder of a run" if path.exists() else None
        raise InputError("holds no report" if path.exists() else "does not exist", where=str(path), hint=hint)
    return found


def _write(texts: dict[str, str], folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"the report cannot be written: {reason}", where=str(folder)) from error
    return [folder / name for name in texts]


def _replace(path: Path, text: str) -> None:
    """Put the text in place of the file in one step: a reader, or a killed run, never meets half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
