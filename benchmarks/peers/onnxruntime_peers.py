"""Stock onnxruntime: float32, its dynamic int8 matmul, its 4-bit matmul (accuracy level 4: int8 inside), int8 conv.

Sessions have one thread between operators and do not spin, so that they leave the cores to the next provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers.base import Bind, Build, Call, ConvGeometry, Layer, Provider, Run
from compress.formats import WeightSpec, quantize_weight

Array = NDArray[Any]
_MICROSOFT = "com.microsoft"
_OPSET, _IR = 21, 10
_QUIET = "no spinning"


def session_options(threads: int) -> Any:
    """onnxruntime's session options for measuring."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class _Opened:
    """A session from input `x` to output `y`."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, x: Tensor, decode: Callable[[Any], Tensor] = torch.from_numpy) -> Run:
        feeds = {"x": x.numpy()}
        return Call(lambda: self.session.run(None, feeds)[0], decode)


def _open(nodes: list[Any], weights: dict[str, Array], layer: Layer, x_type: type = np.float32) -> _Opened:
    """A session of nodes that read `x` and write `y`, both of `x_type`."""
    import onnx
    import onnxruntime

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(x_type))
    rank = layer.x.dim()
    shape: list[str | int | None] = ["rows", layer.k] if rank == 2 else list(layer.x.shape)
    graph = onnx.helper.make_graph(
        nodes,
        "layer",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(_MICROSOFT, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    content = model.SerializeToString()
    options = session_options(layer.threads)
    return _Opened(onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))


def _node(
    kind: str, inputs: list[str], attributes: Mapping[str, Any] = MappingProxyType({}), domain: str = "", y: str = "y"
) -> Any:
    import onnx

    return onnx.helper.make_node(kind, inputs, [y], domain=domain, **attributes)


def _conv_attributes(geometry: ConvGeometry) -> dict[str, Any]:
    kernel, stride, padding, groups = geometry
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "group": groups}


def _fp32(layer: Layer) -> Bind:
    weight = layer.weight.numpy()
    if layer.geometry is not None:
        return _open([_node("Conv", ["x", "w"], _conv_attributes(layer.geometry))], {"w": weight}, layer)
    return _open([_node("MatMul", ["x", "w"])], {"w": np.ascontiguousarray(weight.T)}, layer)


def _int8_weight(layer: Layer) -> tuple[Array, Array]:
    """Codes in the weight's shape and scales `[n]`."""
    rows = layer.weight.flatten(1).numpy()
    scales = np.abs(rows).max(1) / 127
    codes = np.round(rows / scales[:, None]).astype(np.int8)
    return codes.reshape(layer.weight.shape), scales.astype(np.float32)


def _dynamic_int8(layer: Layer) -> Bind:
    codes, scales = _int8_weight(layer)
    node = _node("DynamicQuantizeMatMul", ["x", "w", "scale"], domain=_MICROSOFT)
    return _open([node], {"w": np.ascontiguousarray(codes.T), "scale": scales}, layer)


def _nbits4(block: int) -> Build:
    def build(layer: Layer) -> Bind:
        packed = quantize_weight(layer.weight, WeightSpec("int4", "group", block))
        weights = {"w": packed.codes.numpy(), "scale": packed.scales.numpy().reshape(-1)}
        attributes = {"K": layer.k, "N": layer.n, "bits": 4, "block_size": block, "accuracy_level": 4}
        return _open([_node("MatMulNBits", ["x", "w", "scale"], attributes, _MICROSOFT)], weights, layer)

    return build


class _IntegerConv:
    """Weights and node of a uint8 x int8 convolution with uint8 output; zero points of activations are 128."""

    def __init__(self, layer: Layer) -> None:
        assert layer.geometry is not None
        codes, scales = _int8_weight(layer)
        _, stride, padding, groups = layer.geometry
        y = torch.nn.functional.conv2d(layer.x, layer.weight, None, stride, padding, 1, groups)
        self.x_scale, self.y_scale = _scale(layer.x), _scale(y)
        self.weights = {"w": codes, "w_scale": scales, "w_zero": np.zeros(layer.n, np.int8)}
        self.weights |= {"x_scale": self.x_scale, "y_scale": self.y_scale, "zero": np.asarray(128, np.uint8)}
        self.attributes = _conv_attributes(layer.geometry)

    def node(self, x: str, y: str) -> Any:
        inputs = [x, "x_scale", "zero", "w", "w_scale", "w_zero", "y_scale", "zero"]
        return _node("QLinearConv", inputs, self.attributes, y=y)


def _scale(values: Tensor) -> Array:
    return np.asarray(values.abs().max().item() / 127, np.float32)


def _qlinear_conv(layer: Layer) -> Bind:
    conv = _IntegerConv(layer)
    opened = _open([conv.node("x", "y")], conv.weights, layer, np.uint8)

    def bind(x: Tensor) -> Run:
        codes = (x / float(conv.x_scale) + 128).round().clamp(0, 255).to(torch.uint8)
        return opened(codes, lambda y: (torch.from_numpy(y).float() - 128) * float(conv.y_scale))

    return bind


def _qdq_conv(layer: Layer) -> Bind:
    conv = _IntegerConv(layer)
    before = _node("QuantizeLinear", ["x", "x_scale", "zero"], y="codes")
    after = _node("DequantizeLinear", ["sums", "y_scale", "zero"])
    return _open([before, conv.node("codes", "sums"), after], conv.weights, layer)


_ORT = ("onnx", "onnxruntime")
MATMUL = (
    Provider("ort_fp32", "matmul", "float32", 0, "float", _fp32, 1e-4, _ORT, _QUIET),
    Provider("ort_dynamic_int8", "matmul", "int8", 0, "dynamic", _dynamic_int8, 0.03, _ORT, _QUIET),
    Provider("ort_nbits4_b32", "matmul", "int4", 32, "dynamic", _nbits4(32), 0.2, _ORT, _QUIET),
    Provider("ort_nbits4_b128", "matmul", "int4", 128, "dynamic", _nbits4(128), 0.2, _ORT, _QUIET),
)
CONV = (
    Provider("ort_fp32", "conv", "float32", 0, "float", _fp32, 1e-4, _ORT, _QUIET),
    Provider(
        "ort_qlinearconv",
        "conv",
        "int8",
        0,
        "codes",
        _qlinear_conv,
        0.05,
        _ORT,
        f"uint8 codes in and out: no rounding of floats is timed; {_QUIET}",
    ),
    Provider(
        "ort_qdq_conv",
        "conv",
        "int8",
        0,
        "static",
        _qdq_conv,
        0.05,
        _ORT,
        f"QuantizeLinear, QLinearConv, DequantizeLinear: float in and out, as a U-Net has it; {_QUIET}",
    ),
)
