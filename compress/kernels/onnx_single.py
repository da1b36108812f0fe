"""ONNX models of one operator call, to compare the call's function with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.kernels.onnx_functions import function_for
from compress.kernels.onnx_ops import complete_attributes, register_schemas
from compress.kernels.onnx_variants import TensorFacts, variant_of
from compress.kernels.schema import DOMAIN, VERSION, Operator

IR_VERSION = 10
"""The first that knows overloads of functions."""


def single_node_model(
    operator: Operator, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any], opset: int
) -> Any:
    """An `onnx.ModelProto` that maps `x` to `y` with every other tensor of the call as an initializer.

    `tensors` holds the present inputs by name, x as an example of its type and shape; its first extent is free.
    """
    import onnx

    register_schemas()
    full = complete_attributes(operator, attributes)
    variant = variant_of(operator, full, {name: facts(t, name) for name, t in tensors.items()})
    names = [tensor.name if tensor.name in tensors else "" for tensor in operator.inputs]
    while not names[-1]:
        names.pop()
    x = tensors["x"]
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.detach().cpu().numpy().dtype)
    node = onnx.helper.make_node(operator.onnx_name, names, ["y"], domain=DOMAIN, overload=variant.overload, **full)
    graph = onnx.helper.make_graph(
        [node],
        operator.name,
        [onnx.helper.make_tensor_value_info("x", kind, ["first", *x.shape[1:]])],
        [onnx.helper.make_tensor_value_info("y", kind, [None] * x.dim())],
        [onnx.numpy_helper.from_array(_array(t), name) for name, t in tensors.items() if name != "x"],
    )
    domains = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    function = function_for(variant, opset)
    return onnx.helper.make_model(graph, opset_imports=domains, functions=[function], ir_version=IR_VERSION)


def facts(tensor: Tensor, name: str = "") -> TensorFacts:
    """Element type and shape of an input of that name; the entries too of the code table."""
    values = tuple(tensor.tolist()) if name == "table" else None
    return TensorFacts(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), values)


def _array(tensor: Tensor) -> NDArray[Any]:
    """The same in numpy, whose 8-bit floats come from onnx's own dependency."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype != torch.float8_e4m3fn:
        return plain.numpy()
    import ml_dtypes

    return plain.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
