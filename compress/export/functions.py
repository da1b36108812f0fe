"""Turns what torch wrote into a self-describing file: functions for our operators, nothing of the machine it ran on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from compress.errors import ExportError
from compress.kernels.onnx_functions import function_for
from compress.kernels.onnx_variants import TensorFacts, Variant, variant_of
from compress.kernels.schema import DOMAIN, OPERATORS, VERSION, Operator

_BY_NAME: dict[str, Operator] = {operator.onnx_name: operator for operator in OPERATORS}
_SCOPES = "pkg.torch.onnx.name_scopes"


class Embedded(NamedTuple):
    """Functions by overload name, and how many nodes there are of each operator."""

    functions: tuple[str, ...]
    nodes_by_operator: dict[str, int]


def embed_functions(model: Any, opset: int) -> Embedded:
    """Give every operator node of the `onnx_ir.Model` an overload, and the model a function for each; in place.

    Raises:
        ExportError: a layer's configuration has no function; names the layer.
    """
    import onnx_ir

    variants: dict[str, Variant] = {}
    counts: Counter[str] = Counter()
    for node in operator_nodes(model):
        try:
            variant = variant_of(_BY_NAME[node.op_type], node_attributes(node), node_inputs(node))
            if variant.overload not in variants:
                proto = function_for(variant, opset)
                function = onnx_ir.serde.deserialize_function(proto)
                model.functions[function.identifier()] = function
                variants[variant.overload] = variant
        except ExportError as error:
            raise ExportError(error.message, where=layer_of(node), hint=error.hint) from error
        assert variants[variant.overload] == variant, "an overload name must tell variants apart"
        node.overload = variant.overload
        counts[node.op_type] += 1
    model.opset_imports[DOMAIN] = VERSION
    return Embedded(tuple(sorted(variants)), dict(sorted(counts.items())))


def operator_nodes(model: Any) -> Iterator[Any]:
    """The nodes of our domain in the graph of an `onnx_ir.Model`, in order."""
    return (node for node in model.graph.all_nodes() if node.domain == DOMAIN)


def operator_of(node: Any) -> Operator:
    """The operator that a node of our domain calls."""
    return _BY_NAME[node.op_type]


def node_attributes(node: Any) -> dict[str, Any]:
    """Attributes of an `onnx_ir.Node` as plain values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def node_inputs(node: Any) -> dict[str, TensorFacts]:
    """Type and shape of the present inputs of an operator node, by name. ExportError where one is unknown."""
    names = [tensor.name for tensor in _BY_NAME[node.op_type].inputs]
    return {n: _facts(n, value) for n, value in zip(names, node.inputs, strict=False) if value is not None}


def _facts(name: str, value: Any) -> TensorFacts:
    if value.shape is None or value.dtype is None:
        raise ExportError(f"the shape of {name} is unknown", hint="please report this model")
    shape = tuple(e if isinstance(e, int) else None for e in value.shape)
    constant = value.const_value if name == "table" else None
    values = None if constant is None else tuple(map(float, constant.numpy()))
    return TensorFacts(str(value.dtype.numpy()), shape, values)


def layer_of(node: Any) -> str:
    """Name of the module that a node comes from, as the model calls it; its own name when the exporter left none."""
    scopes = node.metadata_props.get(_SCOPES)
    names = [] if scopes is None else [name for name in scopes.strip("[]").replace("'", "").split(", ") if name]
    inner = [name for name in names[:-1] if name]  # the last one is the call itself
    return _without_prefix(inner[-1]) if inner else str(node.name)


def name_layer(node: Any, layer: str) -> None:
    """Make `layer_of` say `layer`."""
    node.metadata_props[_SCOPES] = str([layer, node.op_type])


def make_anonymous(model: Any) -> None:
    """Drop stack traces, file paths and torch's own notes; initializers get the model's parameter names. In place."""
    for value in list(model.graph.initializers.values()):
        value.name = _without_prefix(value.name)
    for holder in (model, model.graph, *model.functions.values()):
        holder.metadata_props.clear()
        holder.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _without_prefix(name: str) -> str:
    return name.removeprefix("model.")


def check_functions(model: Any) -> None:
    """Raises ExportError when an operator node of an `onnx.ModelProto` has no function in it.

    onnx's own checker lets nodes of unknown domains pass.
    """
    known = {(f.domain, f.name, f.overload) for f in model.functions}
    for node in model.graph.node:
        if node.domain == DOMAIN and (node.domain, node.op_type, node.overload) not in known:
            raise ExportError(
                f"{node.op_type} has no function {node.overload!r}", where=node.name, hint="please report this"
            )
