"""OpenVINO: float32, bfloat16, static int8, and 4-bit weights of NNCF with activations quantized when it runs.

Models take any number of rows; OpenVINO prepares a primitive for each number it meets, before the timing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers.base import Bind, Build, Call, Kind, Layer, Provider, Run

Array = NDArray[Any]
_NOTE = "TBB threads wait busily for a moment after a call"


def config(threads: int, precision: str = "f32", **more: str) -> dict[str, Any]:
    """Settings of `compile_model` for one stream of `threads` threads."""
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision, **more}


def quiet_nncf() -> Any:
    """NNCF without its progress bars and log lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        nncf: Any = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


def _compile(model: Any, layer: Layer, settings: dict[str, Any]) -> Bind:
    openvino: Any = importlib.import_module("openvino")
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def bind(x: Tensor) -> Run:
        request = compiled.create_infer_request()
        given = openvino.Tensor(x.numpy(), shared_memory=True)

        def run() -> Array:
            request.set_input_tensor(given)
            request.infer()
            result: Array = request.get_output_tensor().data
            return result

        return Call(run, lambda y: torch.from_numpy(np.array(y)))

    return bind


def _graph(layer: Layer, weight: Any, levels: int | None = None) -> Any:
    """The layer with a weight node; `levels` puts a FakeQuantize over the range of x before it."""
    openvino: Any = importlib.import_module("openvino")
    ops: Any = importlib.import_module("openvino.opset13")
    shape = [-1, layer.k] if layer.geometry is None else list(layer.x.shape)
    x = ops.parameter(shape, openvino.Type.f32, name="x")
    given = x
    if levels is not None:
        step = float(layer.x.abs().max()) / 127
        low, high = (ops.constant(np.float32(edge * step)) for edge in (-128, 127))
        given = ops.fake_quantize(x, low, high, low, high, levels)
    if layer.geometry is None:
        y = ops.matmul(given, weight, False, True)
    else:
        _, stride, padding, groups = layer.geometry
        where = ([stride] * 2, [padding] * 2, [padding] * 2, [1, 1])
        if groups == 1:
            y = ops.convolution(given, weight, *where)
        else:
            shape = [groups, layer.n // groups, *layer.weight.shape[1:]]
            y = ops.group_convolution(given, ops.reshape(weight, shape, False), *where)
    return openvino.Model([y], [x])


def _plain(layer: Layer) -> Any:
    ops: Any = importlib.import_module("openvino.opset13")
    return _graph(layer, ops.constant(layer.weight.numpy()))


def _float(precision: str) -> Build:
    return lambda layer: _compile(_plain(layer), layer, config(layer.threads, precision))


def _static_int8(layer: Layer) -> Bind:
    ops: Any = importlib.import_module("openvino.opset13")
    scales = layer.weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (layer.weight.dim() - 1)) / 127
    codes = (layer.weight / scales).round().to(torch.int8)
    weight = ops.multiply(ops.convert(ops.constant(codes.numpy()), "f32"), ops.constant(scales.numpy()))
    return _compile(_graph(layer, weight, levels=256), layer, config(layer.threads))


def _int4(group: int) -> Build:
    def build(layer: Layer) -> Bind:
        nncf = quiet_nncf()
        mode = nncf.CompressWeightsMode.INT4_SYM
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model = nncf.compress_weights(_plain(layer), mode=mode, group_size=group, ratio=1.0, all_layers=True)
        settings = config(layer.threads, DYNAMIC_QUANTIZATION_GROUP_SIZE=str(group))
        return _compile(model, layer, settings)

    return build


def _shared(kind: Kind) -> tuple[Provider, ...]:
    packages = ("openvino",)
    return (
        Provider("openvino_fp32", kind, "float32", 0, "float", _float("f32"), 1e-4, packages, _NOTE),
        Provider("openvino_bf16", kind, "bfloat16", 0, "float", _float("bf16"), 0.01, packages, _NOTE),
        Provider("openvino_int8", kind, "int8", 0, "static", _static_int8, 0.05, packages, _NOTE),
    )


def _grouped(group: int) -> Provider:
    note = f"nncf.compress_weights INT4_SYM, activations int8 per {group} inputs; {_NOTE}"
    name = f"openvino_int4_g{group}"
    return Provider(name, "matmul", "int4", group, "dynamic", _int4(group), 0.2, ("openvino", "nncf"), note)


MATMUL = (*_shared("matmul"), _grouped(64), _grouped(128))
CONV = _shared("conv")
