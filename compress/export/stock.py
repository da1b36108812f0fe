"""ONNX with operators of a stock onnxruntime only: our nodes give way to standard ones and those of `com.microsoft`.

Layers that an operator of onnxruntime computes take it (`stock_layers.py`); the others take the body of their function,
inlined. Each layer leaves a note of what it became, and of what differs from the checkpoint's arithmetic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from compress.errors import ExportError
from compress.export.functions import (
    Embedded,
    embed_functions,
    layer_of,
    node_attributes,
    node_inputs,
    operator_nodes,
    operator_of,
)
from compress.export.stock_builders import MICROSOFT
from compress.export.stock_layers import StockForm, choose
from compress.kernels.onnx_functions import function_for
from compress.kernels.onnx_variants import Variant, variant_of
from compress.kernels.onnx_weights import WeightForm
from compress.kernels.schema import DOMAIN, QCONV2D, QMATMUL, Operator

INLINED: Final = "inlined function"
_OURS: Final = f"{DOMAIN}.stock"  # domain of functions that exist until they are inlined
_MICROSOFT_VERSION = 1


@dataclass(frozen=True)
class LayerNote:
    """What a layer became.

    Attributes:
        layer: name of the module. operator: the operator that multiplies, `inlined function` where none does alone.
        became: the same in words.
        differs: what it does not express, or needs.
        exact: it computes the checkpoint's arithmetic, up to the order of float32 sums.
    """

    layer: str
    operator: str
    became: str
    differs: tuple[str, ...] = ()
    exact: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For `export.json`."""
        return {**asdict(self), "differs": list(self.differs)}


def inline_stock(model: Any, opset: int) -> tuple[Embedded, tuple[LayerNote, ...]]:
    """Replace every operator node of the `onnx_ir.Model` in place; no function of ours and no node is left.

    Returns: how many layers became each operator, and a note for each layer, in order.

    Raises:
        ExportError: a layer's configuration has no ONNX form; names the layer.
    """
    from onnx_ir.passes.common import InlinePass

    notes = [_replace(model, node, f"layer{i}", opset) for i, node in enumerate(list(operator_nodes(model)))]
    embed_functions(model, opset)
    InlinePass()(model)
    for domain in (_OURS, DOMAIN):
        model.opset_imports.pop(domain, None)
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.opset_imports[MICROSOFT] = _MICROSOFT_VERSION
    _drop_unused(model)
    left = [node.op_type for node in model.graph.all_nodes() if node.domain not in ("", MICROSOFT)]
    assert not left and not model.functions, "every function is inlined"
    counts = Counter(note.operator for note in notes)
    return Embedded((), dict(sorted(counts.items()))), tuple(notes)


def _replace(model: Any, node: Any, name: str, opset: int) -> LayerNote:
    """Point one node to a function made for it; nodes that have no stock form keep their operator."""
    layer = layer_of(node)
    operator = operator_of(node)
    attributes = node_attributes(node)
    decoded = operator in (QMATMUL, QCONV2D)  # stock operators take codes of single weights, with scales as they are
    try:
        variant = variant_of(operator, attributes | ({"mode": "exact"} if decoded else {}), node_inputs(node))
        form = _form(operator, node, variant, attributes) if decoded else "no stock operator has codes of vectors"
    except ExportError as error:
        raise ExportError(error.message, where=layer, hint=error.hint) from error
    if isinstance(form, str):
        return _body_note(layer, variant, form)
    _call(model, node, variant, form, name, opset)
    return LayerNote(layer, form.operator, form.became, form.differs, form.exact)


def _form(operator: Operator, node: Any, variant: Variant, attributes: dict[str, Any]) -> StockForm | str:
    names = [tensor.name for tensor in operator.inputs]
    values = {n: v for n, v in zip(names, node.inputs, strict=False) if v is not None}
    constants = {n: _tensor(v) for n, v in values.items() if n != "x" and v.const_value is not None}
    shape = tuple(extent if isinstance(extent, int) else None for extent in values["x"].shape)
    return choose(variant, attributes, constants, shape)


def _body_note(layer: str, variant: Variant, reason: str) -> LayerNote:
    if not variant.integer_route:
        reasons = (reason, "computes in float32: the weight is decoded in each run")
        return LayerNote(layer, INLINED, "its function in standard operators", reasons)
    operator = "ConvInteger" if variant.geometry else "MatMulInteger"
    differs: tuple[str, ...] = ("codewords are looked up in each run",)
    if isinstance(variant.weight, WeightForm):
        packed = variant.weight.bits < 8
        differs = (f"codes of {variant.weight.bits} bits are unpacked in each run",) if packed else ()
    return LayerNote(layer, operator, f"{operator}, scales applied after: {reason}", differs)


def _tensor(value: Any) -> Tensor:
    array = value.const_value.numpy()
    if array.dtype not in (np.uint8, np.float16, np.float32):
        array = array.astype(np.float32)  # float8 scales, which torch does not take from numpy
    return torch.from_numpy(np.array(array))


def _call(model: Any, node: Any, variant: Variant, form: StockForm, name: str, opset: int) -> None:
    """Make `node` call a function of its own, with the inputs of the form in place of the operator's."""
    import onnx
    import onnx_ir

    proto = function_for(variant, opset, form.write)
    proto.domain, proto.overload = _OURS, name
    proto.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, _MICROSOFT_VERSION))
    function = onnx_ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    names = [tensor.name for tensor in variant.operator.inputs]
    base = node.inputs[names.index("codes")].name
    for index, name_ in enumerate(names[: len(node.inputs)]):
        if name_ in form.inputs:
            node.replace_input_with(index, _initializer(model, f"{base}.{form.operator}.{name_}", form.inputs[name_]))
    node.domain, node.overload = _OURS, name


def _initializer(model: Any, name: str, array: Any) -> Any:
    """A graph value of that content. Layers that share a weight share what it becomes."""
    import onnx_ir

    known = model.graph.initializers.get(name)
    if known is not None and np.array_equal(known.const_value.numpy(), array):
        return known
    while name in model.graph.initializers:
        name += "_"
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value


def _drop_unused(model: Any) -> None:
    """Remove the initializers that nothing reads any more."""
    outputs = set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]


def stock_model(model: Any, opset: int) -> tuple[Any, tuple[LayerNote, ...]]:
    """The same for an `onnx.ModelProto` of our operators: a new one, and the notes."""
    import onnx_ir

    graph = onnx_ir.serde.deserialize_model(model)
    graph.functions.clear()
    _, notes = inline_stock(graph, opset)
    return onnx_ir.serde.serialize_model(graph), notes
