"""The memory benchmark of reconstruction, on a few megabytes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import reconstruction_memory as benchmark

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")


def test_memory_is_that_of_this_process() -> None:
    before = benchmark.own_memory()
    with benchmark.Watch() as watch:
        block = torch.ones(32 << 20, dtype=torch.uint8)
        assert benchmark.own_memory() - before > 24 << 20
    assert watch.peak - before > 24 << 20
    assert len(block) == 32 << 20


def test_a_mapped_file_does_not_count(tmp_path: Path) -> None:
    """The page cache is the system's, even where a process has it mapped."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(32 << 20))
    before = benchmark.own_memory()
    mapped = torch.from_file(str(path), shared=False, size=32 << 20, dtype=torch.uint8)
    assert int(mapped.max()) == 255
    assert benchmark.own_memory() - before < 8 << 20


def test_the_child_reconstructs_from_disk(tmp_path: Path) -> None:
    found = benchmark.child(gigabytes=0.04, budget=0.1, iterations=2, folder=tmp_path)
    assert found["captured_bytes"] == found["rows"] * benchmark.ROW_BYTES > 0.1 * benchmark.GB / 4
    assert found["peak_bytes"] > 0
    assert set(found["losses"]) == {"rounding", "steps"}
    assert all(0 < after <= before for before, after in found["losses"].values())


@pytest.mark.parametrize(("peak", "code"), [(100, 0), (benchmark.GB + 1, 1)])
def test_beyond_the_budget_the_command_fails(peak, code, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *given: {"peak_bytes": peak, "budget_bytes": benchmark.GB})
    path = tmp_path / "new" / "memory.json"
    assert benchmark.main(["--gigabytes", "1", "--output", str(path)]) == code
    assert json.loads(path.read_text())["peak_bytes"] == peak
    assert ("BEYOND" in capsys.readouterr().out) is bool(code)
