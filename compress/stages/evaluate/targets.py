"""What a child process runs to have its memory measured: load one artefact, call it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.quantizer import register
from compress.export.session import OnnxDenoiser
from compress.models.source import open_adapter, resolve
from compress.quantize.cached_embeddings import known_inputs


def run_once(source: str, onnx: str | None, batch: int, threads: int, kernels: bool = True) -> Any:
    """One forward of the denoiser of `source` (or of the ONNX file `onnx`, with inputs of `source`).

    `kernels` false opens a stock onnxruntime session.
    """
    torch.set_num_threads(threads)
    register()
    adapter = open_adapter(resolve(source))
    inputs = known_inputs(adapter, adapter.example_inputs(batch))
    if onnx is not None:
        denoiser = OnnxDenoiser(Path(onnx), threads=threads, kernels=kernels)
        return denoiser, denoiser(inputs.sample, inputs.timestep.float(), inputs.condition)
    model = adapter.load()
    with torch.inference_mode():
        return model, adapter.denoise(model, inputs.sample, inputs.timestep.float(), inputs.condition)
