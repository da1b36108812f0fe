"""`compress bench` on a tiny run: its rows, their names, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.api import run
from compress.engine import bench
from compress.engine.bench import BenchSettings, bench_run
from compress.errors import InputError
from compress.export.session import kernels_available
from compress.kernels.backends import kernels_in_use

QUICK = BenchSettings(batch=2, threads=1, rounds=3, memory=False)


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, dit_folder: Path) -> Path:
    """The output of a run whose model is a folder beside its recipe: `model`, `out`."""
    root = tmp_path_factory.mktemp("bench")
    shutil.copytree(dit_folder, root / "model")
    formats = {"weights": {"format": "int8"}, "activations": {"format": "int8"}}
    recipe = {
        "name": "tiny",
        "model": {"source": "model", "device": "cpu"},
        "stages": [{"kind": "quantize", **formats}],
        "export": {"onnx": {}},
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    run(root / "recipe.yaml", output=root / "out")
    return root / "out"


def times_of(folder: Path) -> dict[str, list[str]]:
    """What each artefact ran in."""
    found: dict[str, list[str]] = {}
    for row in bench_run(folder, QUICK, lambda text: None).rows:
        found.setdefault(row.artefact, []).append(row.runtime)
    return found


def test_every_artefact_is_timed_against_the_original(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    opened = bench.open_adapter

    def counting(source):
        adapter = opened(source)
        load = adapter.load
        adapter.load = lambda **named: loads.append(Path(source.folder).name) or load(**named)
        return adapter

    monkeypatch.setattr(bench, "open_adapter", counting)
    found = bench_run(finished, QUICK, lambda text: None)
    assert sorted(loads) == ["checkpoint", "model"]
    data = json.loads(json.dumps(found.as_dict()))
    assert data["name"] == "out" and data["settings"]["rounds"] == 3
    assert data["machine"]["kernels"] == kernels_in_use()
    first = data["rows"][0]
    assert (first["artefact"], first["runtime"], first["speedup"]) == ("original", "PyTorch", 1.0)
    for row in data["rows"]:
        assert row["q1"] <= row["median_ms"] <= row["q3"]
        assert row["bytes"] > 0 and row["peak_mb"] is None
    ours = [f"onnxruntime, kernels {kernels_in_use()}"] if kernels_available() else []
    assert [row["runtime"] for row in data["rows"]] == [
        "PyTorch",
        "onnxruntime",
        f"PyTorch, kernels {kernels_in_use()}",
        *ours,
        "onnxruntime, stock",
    ]


def test_a_chosen_backend_is_told(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    found = times_of(finished)
    assert found["checkpoint"] == ["PyTorch, kernels none (COMPRESS_KERNEL=reference)"]
    assert found["onnx"] == ["onnxruntime, stock"]


def test_stock_operators_have_no_row_with_kernels(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    facts = tmp_path / "out" / "onnx" / "transformer" / "export.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "operators": "stock"}))
    assert times_of(tmp_path / "out")["onnx"] == ["onnxruntime, stock"]


def test_folders_that_cannot_be_measured(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint here.*output folder of `compress run`"):
        bench_run(tmp_path, QUICK, lambda text: None)
    model = finished.parent / "model"
    model.rename(finished.parent / "elsewhere")
    try:
        with pytest.raises(InputError, match=r"the original model .*model is not there any more") as gone:
            bench_run(finished, QUICK, lambda text: None)
    finally:
        (finished.parent / "elsewhere").rename(model)
    assert "\n" not in str(gone.value)
