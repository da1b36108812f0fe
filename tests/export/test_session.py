from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch
from export_models import Exported

import compress.onnx
from compress.errors import ExportError, InputError, RunError
from compress.export.session import OnnxDenoiser, _announce_functions, kernels_available, open_session
from compress.kernels import cpu_library


def test_batches_above_the_bound_run_in_pieces(unet: Exported) -> None:
    denoiser = OnnxDenoiser(unet.folder, threads=1)
    inputs = unet.adapter.example_inputs(65)
    whole = denoiser(*inputs)
    assert denoiser.largest_batch == 63 and len(whole) == 65
    condition = {"class_labels": inputs.condition["class_labels"][60:]}
    last = denoiser(inputs.sample[60:], inputs.timestep[60:], condition)
    assert torch.allclose(whole[60:], last, atol=1e-3)


def test_types_and_layouts_are_adapted(dit: Exported) -> None:
    denoiser = OnnxDenoiser(dit.result.path, threads=1)
    sample, timestep, condition = dit.adapter.example_inputs(2)
    expected = denoiser(sample, timestep, condition)
    strided = sample.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    labels = {"class_labels": condition["class_labels"].int()}
    assert torch.equal(denoiser(strided, timestep.double(), labels), expected)
    assert denoiser(sample.half(), timestep, condition).dtype == torch.float16


def test_wrong_inputs_are_refused(dit: Exported) -> None:
    denoiser = OnnxDenoiser(dit.folder)
    sample, timestep, condition = dit.adapter.example_inputs(2)
    with pytest.raises(InputError, match="class_labels"):
        denoiser(sample, timestep, {})
    with pytest.raises(InputError, match="guidance"):
        denoiser(sample, timestep, {**condition, "guidance": timestep})
    with pytest.raises(InputError, match="batch sizes"):
        denoiser(sample, timestep[:1], condition)


def test_public_session(dit: Exported) -> None:
    session = compress.onnx.session(dit.folder, threads=1)
    assert isinstance(session, onnxruntime.InferenceSession)
    assert session.get_session_options().intra_op_num_threads == 1
    assert [i.name for i in session.get_inputs()] == ["sample", "timestep", "class_labels"]


def test_kernels_compute_what_the_functions_compute(dit: Exported) -> None:
    inputs = dit.adapter.example_inputs(2)
    stock, ours = (OnnxDenoiser(dit.folder, threads=1, kernels=kernels)(*inputs) for kernels in (False, True))
    assert (stock - ours).norm() <= 1e-3 * stock.norm()  # roundings may fall the other way
    assert not kernels_available() or not torch.equal(stock, ours)


def test_sessions_without_a_library_run_the_functions_and_say_so(
    dit: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(cpu_library.REQUIRE, raising=False)
    monkeypatch.setattr(cpu_library, "_loaded", lambda: "no compiler")
    _announce_functions.cache_clear()
    for _ in range(2):
        assert compress.onnx.session(dit.folder, threads=1).get_inputs()
    assert caplog.text.count("no compiler") == 1
    monkeypatch.setenv(cpu_library.REQUIRE, "1")
    with pytest.raises(RunError, match="no compiler"):
        compress.onnx.session(dit.folder)
    _announce_functions.cache_clear()


@pytest.mark.parametrize("backend", ["reference", "torch_int8"])
def test_another_backend_leaves_the_kernels_out(
    dit: Exported, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit what a stock session computes, without a word; the name of an instruction set is not another one."""
    inputs = dit.adapter.example_inputs(2)
    stock = OnnxDenoiser(dit.folder, threads=1, kernels=False)(*inputs)
    monkeypatch.setenv("COMPRESS_KERNEL", backend)
    assert torch.equal(OnnxDenoiser(dit.folder, threads=1)(*inputs), stock)
    assert not kernels_available() and not caplog.records
    if cpu_library.library() is not None:
        monkeypatch.setenv("COMPRESS_KERNEL", "scalar")
        assert kernels_available()
        monkeypatch.delenv("COMPRESS_KERNEL")
        assert kernels_available()  # and the instruction set is the best one again
    monkeypatch.setenv("COMPRESS_KERNEL", "fastest")
    with pytest.raises(InputError, match="names no kernel backend"):
        OnnxDenoiser(dit.folder)


def test_broken_folders(dit: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_session(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot open"):
        open_session(tmp_path)
    shutil.copy(dit.result.path, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="missing or damaged"):
        OnnxDenoiser(tmp_path)
    facts = json.loads((dit.folder / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**facts, "version": 2}))
    with pytest.raises(ExportError, match="version 2"):
        OnnxDenoiser(tmp_path)
