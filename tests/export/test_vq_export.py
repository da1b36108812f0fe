"""A model of vector-quantized operators through the whole export: torch.export, ONNX, a stock session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import PixelAdapter
from torch import Tensor, nn

from compress.export.functions import check_functions
from compress.export.onnx_export import ExportResult, export_denoiser
from compress.export.session import OnnxDenoiser, open_session
from compress.formats.vq import VqSpec, pack_vq, vector_count, vq_shape
from compress.kernels.schema import DOMAIN


class VqLayer(nn.Module):
    """Buffers of a vector-quantized weight `[n, k]` with a bias, and the operator on them."""

    codes: Tensor
    codebook: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, n: int, k: int, spec: VqSpec, **attributes: Any) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(n + k)
        shapes = vq_shape((n, k), spec)
        codes = torch.randint(0, spec.codewords, (n, vector_count(k, spec.d)), dtype=torch.uint8, generator=g)
        codebook = torch.randn(shapes.codebook, generator=g) * (40 if spec.codebook_dtype == "int8" else 1)
        self.register_buffer("codes", pack_vq(codes, spec.bits))
        self.register_buffer("codebook", codebook.to(getattr(torch, spec.codebook_dtype)))
        self.register_buffer("scales", torch.rand(shapes.scales, generator=g) + 0.1)
        self.register_buffer("bias", torch.randn(n, generator=g))
        self.attributes = {"bits": spec.bits, "d": spec.d, **attributes}

    def forward(self, x: Tensor) -> Tensor:
        operator: Any = torch.ops.compress.vqconv2d if "kernel" in self.attributes else torch.ops.compress.vqmatmul
        y: Tensor = operator(x, self.codes, self.codebook, self.scales, self.bias, **self.attributes)
        return y


class VqPixels(nn.Module):
    """A convolution of 1 to 6 channels, then a matmul of 6 to 1 over the channels of each pixel, around it x itself."""

    def __init__(self) -> None:
        super().__init__()
        conv = {"kernel": [3, 3], "padding": [1, 1], "act_format": "int8"}
        self.conv = VqLayer(6, 9, VqSpec(6, 2, "int8", "channel"), **conv)
        self.linear = VqLayer(1, 6, VqSpec(8, 4), mode="folded")

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        y = nn.functional.silu(self.conv(sample)) + timestep[:, None, None, None]
        return sample + self.linear(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    folder = tmp_path_factory.mktemp("vq")
    return folder, export_denoiser(PixelAdapter(folder), VqPixels().eval(), folder / "onnx", fuse=request.param)  # type: ignore[arg-type]


def test_each_operator_has_its_function(exported: tuple[Path, ExportResult]) -> None:
    result = exported[1]
    model = onnx.load(str(result.path))
    check_functions(model)
    assert result.nodes_by_operator == {"VQConv2d": 1, "VQMatMul": 1}
    assert {f.overload for f in model.functions if f.domain == DOMAIN} == set(result.functions)
    assert any(name.startswith("vq6_d2_int8codebook") for name in result.functions)
    assert any(name.startswith("vq8_d4_folded") for name in result.functions)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stock_session_computes_the_same(exported: tuple[Path, ExportResult], batch: int) -> None:
    folder, result = exported
    inputs = PixelAdapter(folder).example_inputs(batch, seed=batch)
    with torch.no_grad():
        expected = VqPixels()(inputs.sample, inputs.timestep.float())
    found = OnnxDenoiser(result.path.parent, threads=1)(inputs.sample, inputs.timestep.float(), {})
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_weights_are_stored_packed(exported: tuple[Path, ExportResult]) -> None:
    model = onnx.load(str(exported[1].path))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, buffer in VqPixels().named_buffers():
        if name.endswith(("codes", "codebook", "scales")):
            np.testing.assert_array_equal(arrays[name], buffer.numpy())
    assert open_session(exported[1].path).get_inputs()[0].shape[0] == "batch"
