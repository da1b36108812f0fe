"""Families conditioned on text: each is exported and compared with its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_models import SPECS, adapter_of, quantized
from tiny import TINY_CONFIGS, tiny_model

from compress.export.onnx_export import export_denoiser
from compress.export.parity import check_parity, relative_error
from compress.export.session import OnnxDenoiser


@pytest.mark.slow
@pytest.mark.parametrize("class_name", sorted(TINY_CONFIGS))
def test_text_families(class_name: str, tmp_path: Path) -> None:
    tiny_model(class_name).save_pretrained(tmp_path / "model")
    adapter = adapter_of(tmp_path / "model")
    model = quantized(adapter, SPECS[:2])
    result = export_denoiser(adapter, model, tmp_path / "onnx")
    assert result.nodes_by_operator["QMatMul"] > 10
    parity = check_parity(
        adapter, model, tmp_path / "onnx", adapter.example_inputs(1, seed=1), original=adapter.load(), threads=1
    )
    assert parity.passed
    inputs = adapter.example_inputs(3, seed=2)
    with torch.no_grad():
        expected = adapter.denoise(model, *inputs)
        original = adapter.denoise(adapter.load(), *inputs)
    found = OnnxDenoiser(tmp_path / "onnx", threads=1)(*inputs)
    assert relative_error(found, expected) <= 0.5 * relative_error(expected, original)
    facts = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert facts["prediction"] is None and facts["classes"] is None
    assert [i["name"] for i in facts["inputs"]][2:] == sorted(inputs.condition)
