"""The operators' benchmark on tiny layers: rows, checks, refusals, rendering."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.operators.cases import QUICK, SHAPES, Case, Shape, cases
from benchmarks.operators.measure import LeftOut, Row, available, measure
from benchmarks.operators.render import Measured, label, markdown, ratio
from benchmarks.operators.timing import Budget, interleaved
from benchmarks.peers import PROVIDERS, Call, ConvGeometry, Layer, Provider, SelfTimed, providers
from compress.errors import InputError
from compress.kernels.cpu_library import library

ARCHITECTURE = ("op", "format", "group", "mode", "m", "k", "n", "provider", "median_ms", "q1", "q3", "peak_fraction")
"""Keys of a row: ARCHITECTURE section 9."""
TINY = Shape("matmul", "tiny", 48, 128, (3, 8))
TINY_CONV = Shape("conv", "tiny", 8, 4 * 9, (2 * 5 * 5,), ConvGeometry(3, 1, 1), (2, 4, 5, 5))
CHEAP = ("compress", "torch_fp32", "torch_bf16", "torch_int_mm", "ort_fp32", "ort_dynamic_int8", "ort_nbits4_b32")
BUDGET = Budget(rounds=2, seconds=0.0, settle=0.0)


def rows_of(shape: Shape, chosen: tuple[Provider, ...]) -> tuple[list[Row], LeftOut]:
    left_out, work = LeftOut(), [Case(shape, m) for m in shape.rows]
    found = measure(work, lambda shape: chosen, BUDGET, left_out, seed=1, threads=1, say=lambda line: None)
    return [row for rows in found for row in rows], left_out


@pytest.fixture(scope="module")
def measured() -> Measured:
    matmul, left_out = rows_of(TINY, available(providers("matmul", CHEAP), LeftOut()))
    conv, _ = rows_of(TINY_CONV, available(providers("conv", (*CHEAP, "ort_qlinearconv", "ort_qdq_conv")), LeftOut()))
    notes = {"torch_int_mm": "codes only"}
    found = Measured("python benchmarks/kernels.py", {"cpu": "a CPU"}, {"threads": 1}, [*matmul, *conv], [90.0, 110.0])
    found.notes, found.left_out = notes, left_out
    return found


def test_rows_have_the_fixed_keys(measured: Measured) -> None:
    data = json.loads(json.dumps(measured.to_json()))
    assert set(data) >= {"machine", "peak_gops", "rows"}
    assert data["peak_gops"] == 100.0
    for row in data["rows"]:
        assert tuple(row)[: len(ARCHITECTURE)] == ARCHITECTURE
        assert row["q1"] <= row["median_ms"] <= row["q3"]
        seconds = row["median_ms"] / 1000
        assert row["peak_fraction"] == pytest.approx(2 * row["m"] * row["k"] * row["n"] / seconds / 1e11)
        assert len(row["rounds_ms"]) == BUDGET.rounds


def test_every_provider_computes_the_layer(measured: Measured) -> None:
    assert measured.left_out.to_json() == []
    assert not [row for row in measured.rows if row.suspicious]
    names = {row.provider for row in measured.rows}
    assert names == {*CHEAP, "ort_qlinearconv", "ort_qdq_conv"}
    errors = {label(row): row.relative_error or 0.0 for row in measured.rows}
    assert errors["ort_fp32"] < 1e-5 < errors["torch_int_mm"] < 0.02 < errors["ort_nbits4_b32"] < 0.2
    assert errors["compress int8 exact"] < errors["compress int4 g32 exact"]
    ours = {(row.format, row.group, row.mode) for row in measured.rows if row.provider == "compress"}
    assert len(ours) == 13
    assert all(row.backend for row in measured.rows if row.provider == "compress")
    assert {row.op for row in measured.rows if row.format == "vq2"} == {"vqmatmul", "vqconv2d"}
    assert all((row.reference_error is not None) == row.provider.startswith("compress") for row in measured.rows)
    assert all((row.reference_error or 0.0) <= 1e-5 for row in measured.rows)


def test_depthwise_convolutions() -> None:
    shape = Shape("conv", "tiny", 8, 9, (2 * 5 * 5,), ConvGeometry(3, 1, 1, 8), (2, 8, 5, 5))
    names = (*CHEAP, "ort_qlinearconv", "ort_qdq_conv", "openvino_fp32", "openvino_int8")
    rows, left_out = rows_of(shape, available(providers("conv", names), LeftOut()))
    assert not [row for row in rows if row.suspicious]
    assert {"compress", "torch_fp32", "ort_fp32", "ort_qdq_conv"} <= {row.provider for row in rows}
    (entry,) = left_out.to_json()
    assert entry["provider"] == "compress vq2 exact" and "do not divide 9 inputs" in entry["reason"]
    assert rows[0].case == "qconv2d/tiny/8-8@5x5/3x3/groups8/m50"


@pytest.mark.skipif(library() is None, reason="no CPU kernels")
def test_the_product_alone_is_checked_too() -> None:
    rows, _ = rows_of(TINY, providers("matmul", ["compress_gemm"]))
    assert rows and all(row.reference_error is not None and row.reference_error <= 1e-5 for row in rows)


def test_ours_are_held_to_the_reference_and_not_to_the_format() -> None:
    def off_by(part: float):
        def build(layer: Layer):
            def bind(x: Tensor) -> Call:
                right = torch.nn.functional.linear(x, layer.weight)
                return Call(lambda: right * (1 + part), reference=lambda: right)

            return bind

        return Provider("compress", "matmul", "int4", 0, f"off by {part}", build, 0.25)

    rows, _ = rows_of(TINY, (off_by(1e-6), off_by(1e-3)))
    assert [row.suspicious for row in rows] == [False, True] * 2
    found = markdown(Measured("c", {}, {}, rows))
    assert "nor the order of additions" in found and "0.00100" in found


def test_a_provider_that_computes_something_else_is_noticed() -> None:
    def zeros(layer: Layer):
        return lambda x: Call(lambda: torch.zeros(len(x), layer.n))

    def fails(layer: Layer):
        raise RuntimeError("cannot do that")

    def unstable(layer: Layer):
        return lambda x: SelfTimed(lambda calls: 1 / 0)

    wrong = Provider("wrong", "matmul", "float32", 0, "float", zeros, 0.1)
    broken = Provider("broken", "matmul", "float32", 0, "float", fails, 0.1)
    late = Provider("late", "matmul", "float32", 0, "float", unstable, 0.1)
    rows, left_out = rows_of(TINY, (wrong, broken, late))
    assert [(row.relative_error, row.suspicious) for row in rows] == [(1.0, True)] * 2
    reasons = {entry["provider"]: (entry["reason"], entry["cases"]) for entry in left_out.to_json()}
    assert reasons["broken"] == ("RuntimeError: cannot do that", ["qmatmul/tiny/128x48"])
    assert reasons["late"][1] == [f"qmatmul/tiny/128x48/m{m}" for m in TINY.rows]


def test_a_missing_package_leaves_its_provider_out() -> None:
    absent = Provider("absent", "matmul", "int8", 0, "static", lambda layer: None, 0.1, ("no_such_package",))  # type: ignore[arg-type,return-value]
    slow = Provider("slow", "matmul", "int8", 0, "static", lambda layer: None, 0.1, slow_build=True)  # type: ignore[arg-type,return-value]
    left_out = LeftOut()
    assert available((absent, slow), left_out, quick=True) == ()
    reasons = {entry["provider"]: entry["reason"] for entry in left_out.to_json()}
    assert "no_such_package not installed" in reasons["absent"]
    assert "--quick" in reasons["slow"]
    assert available((slow,), left_out) == (slow,)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'ort_fp23'.*did you mean 'ort_fp32'"):
        providers("matmul", ["ort_fp23"])
    output = tmp_path / "out.json"
    assert kernels.main(["--providers", "nobody", "--threads", "1", "--output", str(output)]) == 2
    assert "there is no provider 'nobody'" in capsys.readouterr().err
    assert not output.exists()
    with pytest.raises(SystemExit):
        kernels.main(["--only", "nothing"])
    assert "no case fits nothing" in capsys.readouterr().err


def test_the_fixed_provider_names_are_all_there() -> None:
    text = (
        "compress ort_fp32 ort_dynamic_int8 ort_nbits4_b32 ort_nbits4_b128 ort_qlinearconv openvino_fp32 openvino_bf16 "
        "openvino_int8 openvino_int4_g64 openvino_int4_g128 torch_fp32 torch_bf16 torch_int_mm torchao_int8"
    )
    assert {provider.name for provider in PROVIDERS} >= set(text.split())
    for kind in ("matmul", "conv"):
        labels = [provider.label for provider in providers(kind)]
        assert len(labels) == len(set(labels))


def test_rounds_take_turns() -> None:
    calls: list[str] = []

    class Spy:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.each = name, seconds

        def seconds(self, count: int) -> list[float]:
            calls.append(self.name)
            return [self.each] * count

        def output(self) -> Tensor | None:
            return None

    pauses: list[float] = []
    runs = {"a": Spy("a", 0.001), "b": Spy("b", 0.004)}
    found = interleaved(runs, Budget(rounds=3, seconds=0.012, settle=0.5), pauses.append)
    assert calls == ["a", "b", *"aabb", *"bbaa", *"aabb"]  # an estimate each, then an untimed and a timed part
    assert (found["a"].samples, found["b"].samples) == ((1.0,) * 3, (4.0,) * 3)
    assert pauses == [0.5] * 6
    assert Budget(rounds=3, seconds=0.012).calls(0.001) == 4
    assert Budget(rounds=3, seconds=0.012).calls(1.0) == 1


def test_ratios_say_how_much_faster_we_are(measured: Measured) -> None:
    ours, peer = (next(row for row in measured.rows if row.provider == name) for name in ("compress", "ort_fp32"))
    found = ratio(ours, peer)
    each = [b / a for a, b in zip(ours.rounds_ms, peer.rounds_ms, strict=True)]
    assert found.value == pytest.approx(sum(each) / 2)  # the median of two
    assert min(each) <= found.q1 <= found.value <= found.q3 <= max(each)


def test_markdown(measured: Measured) -> None:
    text = markdown(measured)
    assert "Measured int8 limit: 100 GOP/s (single measurements 90, 110)." in text
    assert "## Summary of convolutions" in text
    assert "`compress int4 g128 folded`" in text
    assert "- `torch_int_mm`: codes only" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        columns = {line.count(" | ") for line in block.splitlines()}
        assert len(columns) == 1, block
    unknown = markdown(Measured("c", {}, {}, measured.rows))
    assert "was not measured" in unknown
    assert "None" not in unknown


def test_cases_cover_the_models() -> None:
    names = [case.name for case in cases(quick=False)]
    assert len(names) == len(set(names)) == 9 * 7 + 7
    assert cases(quick=False, only=("qmatmul/flux/12288x3072/m1",))[0].shape.k == 12288
    conv = next(case for case in cases(quick=False, only=("*stride2*",)))
    assert (conv.m, conv.shape.k, conv.operations) == (2 * 32 * 32, 2880, 2 * 2048 * 2880 * 320)
    assert all(shape.layer(0, 1).x.count_nonzero() for shape in QUICK)
    assert len(SHAPES) == 16
    depthwise = next(case for case in cases(quick=False, only=("qconv2d/sana/*",)))
    assert (depthwise.shape.k, depthwise.operations) == (9, 2 * 2048 * 9 * 5760)


def test_the_command_writes_json_and_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cases", lambda quick, only: [Case(TINY, 3), Case(TINY, 8)])
    peaks = iter([80.0, 100.0, 120.0])
    monkeypatch.setattr(kernels, "peak_gops", lambda threads: next(peaks))
    output = tmp_path / "new" / "kernels.json"
    arguments = ["--providers", "torch_fp32", "ort_fp32", "--rounds", "2", "--budget", "0", "--settle", "0"]
    assert kernels.main([*arguments, "--threads", "1", "--output", str(output)]) == 0
    data = json.loads(output.read_text())
    assert data["peak_gops_samples"] == [80.0, 100.0, 120.0]
    assert [(row["provider"], row["m"]) for row in data["rows"]] == [
        (name, m) for m in (3, 8) for name in ("torch_fp32", "ort_fp32")
    ]
    assert "Summary of matmuls" in output.with_suffix(".md").read_text()
