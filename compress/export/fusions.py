"""Moves what surrounds our operators into them: fewer passes over the activations, one quantization of shared inputs.

Only the meaning of the graph decides, never the names that torch's exporter gives. Each rule leaves the arithmetic as
it is, up to the place where float32 sums are rounded.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compress.export.fused_activations import activation_after
from compress.export.graph_edit import (
    attribute,
    attribute_names,
    channel_vector,
    get_input,
    input_names,
    is_convolution,
    new_initializer,
    operators_in,
    set_input,
    sole_consumer,
    take_over,
)
from compress.export.shared_inputs import merge_shared_inputs
from compress.kernels.schema import DOMAIN

RULES: Final = ("duplicate", "bias", "gelu_tanh", "silu", "residual", "shared_input", "smooth")


def fuse(model: Any) -> dict[str, int]:
    """Fuse an `onnx_ir.Model` in place, before its nodes have overloads; how often each rule of `RULES` was used.

    - duplicate: nodes that compute what another node computes from equal weights, removed (DiT checkpoints carry one
      copy of the timestep embedding in every block).
    - bias: an Add of a constant vector after an operator without bias.
    - gelu_tanh, silu: the function of an operator's output that nothing else reads.
    - residual: an Add of a tensor of the output's shape; the operator moves to the place of the Add.
    - shared_input: operators that read one x alike, joined to one operator and a Split (counted before joining).
    - smooth: a Mul of x, which nothing else reads, by a constant for each channel.
    """
    counts = dict.fromkeys(RULES, 0)
    counts["duplicate"] = _remove_duplicates(model)
    for node in operators_in(model.graph):
        counts["bias"] += _fuse_bias(model.graph, node)
        name = _fuse_activation(model.graph, node)
        if name is not None:
            counts[name] += 1
    for node in [node for node in model.graph if (node.domain, node.op_type) == ("", "Add")]:
        counts["residual"] += _fuse_residual(model.graph, node)
    counts["shared_input"] = merge_shared_inputs(model.graph)
    for node in operators_in(model.graph):
        counts["smooth"] += _fuse_smooth(model.graph, node)
    _remove_unused(model)
    return counts


def _remove_duplicates(model: Any) -> int:
    """Torch's exporter does this too, but leaves tensors of more than 1,024 elements alone."""
    from onnx_ir.passes import common

    before = model.graph.num_nodes()
    _make_contiguous(model)
    common.DeduplicateHashedInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    return int(before - model.graph.num_nodes())


def _make_contiguous(model: Any) -> None:
    """Lay out the initializers that are views, as the transposed weights of plain linear layers: they are hashed."""
    import onnx_ir

    for value in model.graph.initializers.values():
        array = None if value.const_value is None else value.const_value.numpy()
        if array is not None and not array.flags.c_contiguous:
            value.const_value = onnx_ir.tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)


def _remove_unused(model: Any) -> None:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)


def _fuse_bias(graph: Any, node: Any) -> bool:
    y = node.outputs[0]
    add = sole_consumer(y)
    takes = "bias" in input_names(node) and get_input(node, "bias") is None and _is_open(node)
    if not takes or y.shape is None or not _is(add, "Add") or add.outputs[0].is_graph_output():
        return False
    other = add.inputs[1] if add.inputs[0] is y else add.inputs[0]
    channels = y.shape[1 if is_convolution(node) else -1]
    numbers = channel_vector(other, channels, len(y.shape), is_convolution(node))
    if numbers is None or other.dtype != y.dtype:
        return False
    set_input(node, "bias", _flat(graph, other, numbers))
    take_over(graph, node, [add])
    return True


def _fuse_activation(graph: Any, node: Any) -> str | None:
    takes = "activation" in attribute_names(node) and _is_open(node)
    found = activation_after(node.outputs[0]) if takes else None
    if found is None:
        return None
    import onnx_ir

    node.attributes.add(onnx_ir.AttrString("activation", found.name))
    take_over(graph, node, found.nodes)
    return found.name


def _is_open(node: Any) -> bool:
    """Whether the product itself is the output."""
    return get_input(node, "residual") is None and attribute(node, "activation") in (None, "none")


def _fuse_residual(graph: Any, add: Any) -> bool:
    """The operator takes the Add's place, where all that it reads exists: no order can break, no cycle can close."""
    if add.outputs[0].is_graph_output():
        return False
    pairs = ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0]))
    for y, other in pairs:
        node = y.producer()
        if node is not None and _takes_residual(node) and sole_consumer(y) is add and _alike(y, other):
            graph.remove(node)
            graph.insert_before(add, node)
            set_input(node, "residual", other)
            take_over(graph, node, [add])
            return True
    return False


def _takes_residual(node: Any) -> bool:
    return node.domain == DOMAIN and "residual" in input_names(node) and get_input(node, "residual") is None


def _alike(a: Any, b: Any) -> bool:
    """Equal type and shape; extents without a name are not known to be equal."""
    if a.dtype != b.dtype or a.shape is None or b.shape is None:
        return False
    left, right = ([e if isinstance(e, int) else e.value for e in v.shape] for v in (a, b))
    return left == right and None not in left


def _fuse_smooth(graph: Any, node: Any) -> bool:
    x = get_input(node, "x")
    if "smooth" not in input_names(node) or get_input(node, "smooth") is not None or sole_consumer(x) is not node:
        return False
    multiply = x.producer()
    if not _is(multiply, "Mul") or x.shape is None:
        return False
    channels = x.shape[1 if is_convolution(node) else -1]
    for value, factor in (tuple(multiply.inputs), tuple(multiply.inputs)[::-1]):
        numbers = channel_vector(factor, channels, len(x.shape), is_convolution(node))
        if numbers is not None and numbers.dtype == np.float32 and _alike(x, value):
            set_input(node, "smooth", _flat(graph, factor, numbers))
            set_input(node, "x", value)
            graph.remove(multiply, safe=True)
            return True
    return False


def _is(node: Any, op_type: str) -> bool:
    return node is not None and (node.domain, node.op_type) == ("", op_type)


def _flat(graph: Any, value: Any, numbers: NDArray[Any]) -> Any:
    """The constant itself where it has one axis, else an initializer that has."""
    return value if len(value.shape) == 1 else new_initializer(graph, f"{value.name}.flat", numbers, value.dtype)
