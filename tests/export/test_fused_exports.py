"""Whole models, fused and not, in a stock session."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from export_models import SPECS, Exported, adapter_of, quantized
from tiny import TINY_CONFIGS, tiny_dit_pipeline, tiny_model, tiny_unet2d_pipeline
from torch import nn

from compress.export import onnx_export
from compress.export.onnx_export import ExportResult, export_denoiser
from compress.export.parity import check_parity, relative_error
from compress.export.session import OnnxDenoiser
from compress.export.trace import trace_denoiser
from compress.models.adapter import Adapter
from compress.models.source import open_adapter, resolve

# Without the parts that cannot be fused: gates between an operator and its sum, GEGLU.
EXPECTED = {
    "dit": {"duplicate": 7, "gelu_tanh": 2, "silu": 1, "residual": 1, "shared_input": 9},
    "unet": {"silu": 1, "residual": 9, "shared_input": 20},
    "PixArtTransformer2DModel": {"gelu_tanh": 3, "silu": 1, "residual": 2, "shared_input": 10},
    "SD3Transformer2DModel": {"gelu_tanh": 3, "silu": 2, "residual": 1, "shared_input": 17},
    "FluxTransformer2DModel": {"gelu_tanh": 4, "silu": 3, "residual": 2, "shared_input": 17},
    "UNet2DConditionModel": {"silu": 2, "residual": 24, "shared_input": 28},
}


def compared(name: str, folder: Path) -> tuple[Exported, float]:
    """The fused export, and how far its output is from the one that is not fused."""
    if name == "dit":
        tiny_dit_pipeline(folder / "model")
    elif name == "unet":
        tiny_unet2d_pipeline(folder / "model")
    else:
        tiny_model(name).save_pretrained(folder / "model")
    adapter = adapter_of(folder / "model")
    model = quantized(adapter, SPECS[:1])
    plain, fused = exports(adapter, model, folder)
    assert plain.fused == {} and sum(plain.nodes_by_operator.values()) > sum(fused.nodes_by_operator.values())
    inputs = adapter.example_inputs(3, seed=1)
    expected, found = (OnnxDenoiser(folder / kind, threads=1, kernels=False)(*inputs) for kind in ("plain", "fused"))
    return Exported(adapter, adapter.load(), model, fused), relative_error(found, expected)


def exports(adapter: Adapter, model: nn.Module, folder: Path) -> tuple[ExportResult, ExportResult]:
    """The plain export and the fused one, of one translation: that takes most of the time."""
    traced = trace_denoiser(adapter, model)
    program = onnx_export._translate(traced, 21)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "trace_denoiser", lambda adapter, model: traced)
        patch.setattr(onnx_export, "_translate", lambda traced, opset: program.clone())
        plain = export_denoiser(adapter, model, folder / "plain", fuse=False)
        return plain, export_denoiser(adapter, model, folder / "fused")


@pytest.fixture(scope="module", params=["dit", "unet"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Exported, float]:
    return request.param, *compared(request.param, tmp_path_factory.mktemp(request.param))


def test_a_fused_file_computes_the_same(whole: tuple[str, Exported, float]) -> None:
    name, exported, difference = whole
    assert difference <= 1e-6
    assert {rule: count for rule, count in exported.result.fused.items() if count} == EXPECTED[name]
    facts = json.loads((exported.folder / "export.json").read_text())
    assert facts["fused"] == exported.result.fused


def test_a_model_without_low_bit_layers_is_written_too(tmp_path: Path) -> None:
    """Its weights reach the file as transposed views, which the removal of duplicates must be able to hash."""
    folder = tiny_dit_pipeline(tmp_path / "source")
    adapter = open_adapter(resolve(str(folder)))
    model = adapter.load().eval()
    result = export_denoiser(adapter, model, tmp_path / "onnx")
    assert result.fused["duplicate"] > 0 and not result.nodes_by_operator
    inputs = adapter.example_inputs(3, seed=1)
    expected = adapter.denoise(model, *inputs)
    found = OnnxDenoiser(tmp_path / "onnx", threads=1, kernels=False)(*inputs)
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_a_fused_file_of_a_text_family_computes_the_same(name: str, tmp_path: Path) -> None:
    exported, difference = compared(name, tmp_path)
    assert difference <= 1e-6
    assert {rule: count for rule, count in exported.result.fused.items() if count} == EXPECTED[name]


def test_parity_holds_layers_against_the_nodes_they_went_into(
    whole: tuple[str, Exported, float], tmp_path: Path
) -> None:
    _, exported, _ = whole
    inputs = exported.adapter.example_inputs(2, seed=2)
    honest = check_parity(exported.adapter, exported.model, exported.folder, inputs, threads=1)
    names = {layer.name for layer in exported.adapter.layers(exported.original)}
    assert honest.passed and {call.layer for call in honest.operators} == names

    shutil.copytree(exported.folder, tmp_path / "changed")
    proto = onnx.load(str(tmp_path / "changed" / "model.onnx"))
    scale = next(t for t in proto.graph.initializer if t.name.endswith("to_q+to_k+to_v.weight_scale"))
    numbers = onnx.numpy_helper.to_array(scale).copy()
    third = len(numbers) // 3
    numbers[third : 2 * third] *= 1.01
    scale.CopyFrom(onnx.numpy_helper.from_array(numbers, scale.name))
    onnx.save(proto, str(tmp_path / "changed" / "model.onnx"))
    found = check_parity(exported.adapter, exported.model, tmp_path / "changed", inputs, threads=1)
    wrong = [call.layer for call in found.operators if not call.passed]
    assert wrong == [scale.name.replace("to_q+to_k+to_v.weight_scale", "to_k")]
