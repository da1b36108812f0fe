"""`compress bench` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import call

FAST = ("--no-memory", "--rounds", 3, "--batch", 2, "--threads", 1)


def test_the_table_and_its_json(capsys: pytest.CaptureFixture[str], recipe_file, tmp_path: Path) -> None:
    recipe = recipe_file(evaluate=[], gates=[])
    assert call(capsys, "run", recipe, "--output", tmp_path / "out")[0] == 0
    code, out, err = call(capsys, "bench", tmp_path / "out", *FAST)
    assert code == 0
    columns = "artefact  runs in  ms a call  quartiles  speed-up  size  peak memory"
    assert out.splitlines()[0].split() == columns.split()
    assert "1.00x" in out and "3 interleaved rounds" in out
    assert "exporting the original" in err
    code, out, _ = call(capsys, "bench", tmp_path / "out", *FAST, "--json")
    assert code == 0
    assert {row["artefact"] for row in json.loads(out)["rows"]} == {"original", "checkpoint"}


def test_a_folder_that_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "bench", tmp_path, *FAST)
    assert code == 2
    assert "no checkpoint here" in err and "Traceback" not in err
