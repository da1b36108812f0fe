from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import PixelAdapter, TimeTable
from torch import Tensor, nn

from compress.errors import ExportError
from compress.export.onnx_export import export_denoiser
from compress.export.session import OnnxDenoiser
from compress.export.trace import trace_denoiser


class Branching(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample if float(sample.sum()) > 0 else -sample


def test_whole_timesteps_where_the_model_takes_no_others(tmp_path: Path) -> None:
    adapter, model = PixelAdapter(tmp_path), TimeTable().eval()
    traced = trace_denoiser(adapter, model)
    assert traced.inputs.timestep.dtype == torch.int64 and traced.largest_batch is None
    export_denoiser(adapter, model, tmp_path)
    inputs = adapter.example_inputs(5)
    with torch.no_grad():
        expected = adapter.denoise(model, *inputs)
    found = OnnxDenoiser(tmp_path)(inputs.sample, inputs.timestep + 0.25, inputs.condition)
    assert torch.allclose(found, expected)


def test_what_torch_cannot_trace_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot trace Branching"):
        trace_denoiser(PixelAdapter(tmp_path), Branching().eval())
