"""The denoiser's benchmark: choosing, a worker with a small model, the profile, ratios, rendering. No DiT is built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import endtoend
from benchmarks.denoiser import artefacts, measure, worker
from benchmarks.denoiser.artefacts import MAKERS, Artefact
from benchmarks.denoiser.contestants import CONTESTANTS, Contestant, contestants
from benchmarks.denoiser.measure import Found, Plan, Row, Worker
from benchmarks.denoiser.model import TOKENS, adapter_of, inputs, macs, parameters
from benchmarks.denoiser.render import Measured, markdown
from compress.errors import InputError, RunError

STOCK = Contestant("stock", "float32", 0, "float", "onnx_fp32", "onnxruntime")


@pytest.fixture
def doubling(tmp_path: Path) -> tuple[Path, Path]:
    """A model file that doubles its input, and a file with inputs."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.arange(6, dtype=np.float32).reshape(2, 3))
    return tmp_path / "model.onnx", tmp_path / "inputs.npz"


def test_a_worker_opens_runs_and_measures_itself(doubling: tuple[Path, Path], tmp_path: Path) -> None:
    opened = Worker(STOCK, *doubling, threads=1)
    try:
        assert opened.report["memory"]["peak"] >= opened.report["memory"]["baseline"] > 0
        assert opened.report["memory"]["resident"] > 0
        assert opened.report["seconds"]["open"] > 0
        assert len(opened.ask({"calls": 3})) == 3
        opened.ask({"save": str(tmp_path / "output.npy")})
        assert np.load(tmp_path / "output.npy").tolist() == [[0, 2, 4], [6, 8, 10]]
    finally:
        opened.close()


def test_a_worker_that_fails_says_why(doubling: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(RunError, match=r"its process ended: .*broken\.onnx"):
        Worker(STOCK, tmp_path / "broken.onnx", doubling[1], threads=1)


def test_the_profile_is_summed_by_operator() -> None:
    def node(kind: str, ts: int, dur: int, name: str = "n_kernel_time") -> dict[str, object]:
        return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": kind}}

    run = {"cat": "Session", "name": "model_run", "dur": 9}
    events = [run | {"ts": ts} for ts in (0, 100, 200)]
    events += [node("QMatMul", 1, 999), node("QMatMul", 110, 3000), node("QMatMul", 210, 5000), node("Add", 220, 2000)]
    events += [node("Add", 230, 7777, "n_fence_before")]
    rows = worker.breakdown(events, skip=1)
    assert [(r["op"], r["ms"], r["share"]) for r in rows] == [("QMatMul", 4.0, 0.8), ("Add", 1.0, 0.2)]
    assert worker.breakdown(events, skip=3) == []


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="did you mean 'openvino_bf16'"):
        contestants(["openvino_b16"])
    assert endtoend.main(["--providers", "nobody"]) == 2
    assert "there is no provider 'nobody'" in capsys.readouterr().err


def test_contestants_are_distinct_and_have_their_files() -> None:
    labels = [contestant.label for contestant in CONTESTANTS]
    assert len(labels) == len(set(labels))
    for contestant in CONTESTANTS:
        assert contestant.artefact in MAKERS
        assert contestant.runtime in worker.RUNTIMES
    absent = Contestant("x", "int8", 0, "static", "openvino_int8", "openvino", packages=("no_such_package",))
    assert "no_such_package not installed" in absent.missing()


def test_the_model_is_a_dit_xl_2(tmp_path: Path) -> None:
    """Peebles and Xie 2023, table 1: 118.6 G multiply-accumulates, 675 M weights; attention's are 2 x 256^2 x 1152."""
    one, two = (adapter_of(tmp_path / str(blocks), blocks) for blocks in (1, 2))
    assert macs(one, 1) + 27 * (macs(two, 1) - macs(one, 1)) + 28 * 2 * TOKENS**2 * 1152 == pytest.approx(
        118.6e9, rel=0.01
    )
    embedder = parameters_of_embedder()
    assert parameters(one) + 27 * (parameters(two) - parameters(one) - embedder) == pytest.approx(675e6, rel=0.01)
    given = inputs(one, 2, seed=3)
    assert given["sample"].shape == (2, 4, 32, 32)
    assert given["timestep"].is_floating_point()


def parameters_of_embedder() -> int:
    """Timestep and label embedding, which diffusers repeats in every block."""
    return 1001 * 1152 + (256 + 1) * 1152 + (1152 + 1) * 1152


def row(provider: str, label: str, times: tuple[float, ...], size: int) -> Row:
    found = Row("denoiser", "int4", 0, "exact", 512, None, None, provider, label=label, file_bytes=size)
    if times:
        found.rounds_ms, found.median_ms, found.q1, found.q3 = times, sorted(times)[1], min(times), max(times)
    return found


def test_ratios_and_report(tmp_path: Path) -> None:
    ours, stock = (
        Contestant(name, "int4", 0, "exact", "compress_int4", "x") for name in ("compress", "compress_stock")
    )
    base = Contestant("ort_fp32", "float32", 0, "float", "onnx_fp32", "onnxruntime")
    rows = [
        row("compress", ours.label, (10.0, 20.0, 40.0), 25),
        row("ort_fp32", "ort_fp32", (30.0, 40.0, 60.0), 200),
        row("compress_stock", stock.label, (), 25),
    ]
    found = Found(rows, {ours.label: [{"op": "QMatMul", "ms": 8.0, "share": 0.8, "nodes": 7}]}, {"other": "no reason"})
    found.macs = 10**9
    made = {c: Artefact(tmp_path, 200 if c is base else 25, 1.0) for c in (ours, base, stock)}
    measure._relate(found, made)
    assert rows[0].speedup == {"value": 2.0, "q1": 1.75, "q3": 2.5}  # of 3, 2 and 1.5, round by round
    assert rows[1].speedup == {"value": 1.0, "q1": 1.0, "q3": 1.0}
    assert rows[2].speedup is None
    assert [r.size_ratio for r in rows] == [0.125, 1.0, 0.125]
    model = {"name": "tiny", "blocks": 1, "batch": 2, "tokens": 256, "parameters": 5, "layers": "All."}
    measured = Measured("python benchmarks/endtoend.py", {"cpu": "a CPU"}, {}, model, found, [1000.0, 1000.0])
    measured.finish()
    assert rows[0].peak_fraction == pytest.approx(2e9 / 0.020 / 1e12)
    text = markdown(measured)
    assert "| `ort_fp32` | 40.0 (30.0 to 60.0) | 5 % |" in text
    assert "2.00 (1.75 to 2.50)" in text
    assert "| `QMatMul` | 7 | 8.00 | 80.0 % |" in text
    assert "- `other`: no reason" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count(" | ") for line in block.splitlines()}) == 1, block
    fixed = ["op", "format", "group", "mode", "m", "k", "n", "provider", "median_ms", "q1", "q3", "peak_fraction"]
    assert list(json.loads(json.dumps(measured.to_json()))["rows"][0])[:12] == fixed


def test_a_stock_session_is_compared_with_ours_on_the_same_file(tmp_path: Path) -> None:
    labels = ("ort_fp32", "compress int4 exact", "compress_stock int4 exact", "compress int4 g128 exact")
    rows = [row(name.partition(" ")[0], name, (), 1) for name in labels]
    values = [[3.0, 4.0], [3.0, 4.5], [3.0, 4.0], [0.0, 0.0]]
    for found, value in zip(rows, values, strict=True):
        np.save(measure._output(tmp_path, found.label), np.asarray(value)[:, None])
    measure._errors(Found(rows), tmp_path)
    assert [r.relative_error for r in rows] == [0.0, 0.1, 0.0, 1.0]
    assert [r.same_file_error for r in rows] == [None, None, pytest.approx(0.5 / 29.25**0.5), None]


def test_what_cannot_be_made_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, recipe: artefacts.Recipe, *, reuse: bool) -> Artefact:
        raise RunError("no space", where=name)

    monkeypatch.setattr(measure, "make", make)
    recipe = artefacts.Recipe(tmp_path, 1, 1, 0)
    found = measure.measure(contestants(["ort_fp32"]), recipe, Plan(1, 1, 1, 0.0, False), lambda line: None)
    assert found.rows == []
    assert found.left_out == {"ort_fp32": "onnx_fp32: no space"}
