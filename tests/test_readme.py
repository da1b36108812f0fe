"""Every command and snippet of the README runs as printed, except the two make commands (they run everything else)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_has_snippets_and_names_both_make_commands() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    text = "\n".join(body for _, body in BLOCKS)
    assert "make demo" in text
    assert "make test" in text


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_table_is_that_of_the_committed_reports() -> None:
    from compress.report.write import load_report

    rows = [line for line in README.splitlines() if line.startswith("| digits-")]
    assert len(rows) >= 4
    for row in rows:
        name, ratio, accuracy, psnr = [cell.strip() for cell in row.strip("|").split("|")][:4]
        report = load_report(ROOT / "reports" / name)
        found = {key: report.find(key, "checkpoint") for key in ("size_ratio", "class_accuracy", "psnr")}
        assert all(found.values()), name
        assert ratio == f"{found['size_ratio'].value:.3f}"
        assert accuracy == f"{100 * found['class_accuracy'].value:.1f} %"
        assert psnr == f"{found['psnr'].value:.1f} dB"


@pytest.mark.slow
def test_the_snippets_run_in_their_order(tmp_path: Path) -> None:
    """In one working folder that holds the recipes, as a clone does: later snippets use what earlier ones wrote."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, body in BLOCKS:
        lines = [line for line in body.splitlines() if not line.startswith("make ")]
        code = "\n".join(lines)
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
