"""report.md and comparison.md."""

from __future__ import annotations

import re

from sample_report import sample_report, sample_runs

from compress.report.compare import compare
from compress.report.compare_markdown import comparison_markdown
from compress.report.markdown import code, escape, report_markdown, value_text
from compress.report.model import GateResult, Table


def tables(markdown: str) -> list[list[str]]:
    """Runs of consecutive table lines."""
    blocks: list[list[str]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def test_report_has_its_sections_in_order() -> None:
    titles = re.findall(r"^## (.*)$", report_markdown(sample_report()), flags=re.M)
    assert titles == [
        "Gates", "Metrics", "Bytes by tensor class", "Noise error per band", "Noise floor",
        "class_accuracy by category", "Stages", "Model", "Machine", "Layers",
    ]  # fmt: skip


def test_values_carry_spread_n_and_unit() -> None:
    text = report_markdown(sample_report())
    assert "# digits-dit-w4a8\n\n**1 of 4 gates missed.**\n\n- size_ratio of checkpoint is 0.243, above" in text
    assert "| `class_accuracy` | 0.979 (0.970 to 0.988, n 1,000) | 0.973 (0.963 to 0.983, n 1,000) |" in text
    assert "| `latency_ms` | 7.48 ms (quartiles 7.41 to 7.66, n 20) |" in text
    assert "| 0 | 0.0115 to 0.0310 | 9.4e-5 (8.2e-5 to 1.1e-4, n 256) | 0.031 (0.027 to 0.035, n 256) |" in text
    assert "| 2 | quantize | 3 min 07 s | layers 40, bytes 3.20 MB, formats int4 g64: 34, int8: 6 |" in text
    assert "| memory | 16.8 GB |" in text
    assert value_text(None) == "\u2013"


def test_every_row_has_as_many_cells_as_its_head() -> None:
    for markdown in (report_markdown(sample_report()), comparison_markdown(compare(sample_runs()))):
        found = tables(markdown)
        assert found
        for block in found:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1, block[0]


def test_hostile_text_breaks_no_table_and_no_page() -> None:
    evil = "a|b\n<script>`*[x](http://y)\\"
    gate = GateResult(metric=evil, artefact="onnx", maximum=1.0, value=None, passed=False, message=evil)
    table = Table(title=evil, columns=[evil, "n"], rows=[[evil, 1], [None, None]])
    report = sample_report().model_copy(
        update={"name": evil, "gates": [gate], "tables": [table], "machine": {"a": evil}}
    )
    text = report_markdown(report)
    assert "<script>" not in text and "](http" not in text.replace("\\[x](http", "")
    for block in tables(text):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block}) == 1, block
    assert escape("a&b") == "a&amp;b"
    assert code("psnr") == "`psnr`" and code("a|b") == "a\\|b"


def test_comparison_marks_fronts_and_lists_misses() -> None:
    text = comparison_markdown(compare(sample_runs()))
    edge = next(line for line in text.splitlines() if line.startswith("| digits-dit-edge"))
    assert edge.endswith("| 1 of 2 met | size, latency |")
    assert "- digits-dit-edge: class_accuracy_drop of checkpoint is 0.038, above the allowed 0.01" in text
    assert "## Warnings" not in text
