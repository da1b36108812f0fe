"""Exports that several tests look at; each is made once."""

from __future__ import annotations

import pytest
from export_models import Exported, adapter_of, quantized
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline

from compress.export.onnx_export import export_denoiser


@pytest.fixture(scope="session")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("dit")
    adapter = adapter_of(tiny_dit_pipeline(folder / "model", blocks=1))
    model = quantized(adapter)
    return Exported(adapter, adapter.load(), model, export_denoiser(adapter, model, folder / "onnx" / "transformer"))


@pytest.fixture(scope="session")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("unet")
    adapter = adapter_of(tiny_unet2d_pipeline(folder / "model"))
    model = quantized(adapter)
    return Exported(adapter, adapter.load(), model, export_denoiser(adapter, model, folder / "onnx" / "unet"))


@pytest.fixture(params=["dit", "unet"])
def exported(request: pytest.FixtureRequest) -> Exported:
    value: Exported = request.getfixturevalue(request.param)
    return value
