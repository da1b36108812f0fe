"""Joins matrix products that read one input alike: the input is quantized once, and one larger product runs.

Rows of a weight are quantized apart, so an output channel of the joined operator is what it was before.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compress.export.functions import name_layer
from compress.export.graph_edit import (
    attribute,
    constant,
    get_input,
    input_names,
    new_initializer,
    operators_in,
    same,
)
from compress.kernels.schema import QMATMUL

LARGEST_WEIGHT: Final = 2**23
"""Numbers in a joined weight: runtimes without our kernels expand a whole weight of group scales in float32."""

_NAMES_LISTED = 4
_BY_ROW: Final = ("codes", "scales", "zero_points", "bias")
_NEVER: Final = ("low_rank_a", "low_rank_b", "residual")


def merge_shared_inputs(graph: Any) -> int:
    """Join what can be joined, in place; returns how many operators went into joined ones.

    Operators belong together when they read the same x and agree in everything but the rows of their weights:
    attributes, static activation scales, smoothing, table, second-level scale, and the granularity of scales and zero
    points along a row. Those with a low-rank branch or a residual stay alone, so do those that the graph returns.
    """
    joined = 0
    for group in _groups(graph):
        for part in _parts(group):
            if len(part) > 1:
                _merge(graph, part)
                joined += len(part)
    return joined


def _groups(graph: Any) -> list[list[Any]]:
    """Candidates by equality with the first of their group, in graph order."""
    by_input: dict[Any, list[list[Any]]] = {}
    for node in operators_in(graph):
        if _can_be_joined(node):
            groups = by_input.setdefault(get_input(node, "x"), [])
            group = next((g for g in groups if _agree(g[0], node)), None)
            if group is None:
                groups.append([node])
            else:
                group.append(node)
    return [group for groups in by_input.values() for group in groups]


def _can_be_joined(node: Any) -> bool:
    if node.op_type != QMATMUL.onnx_name or node.outputs[0].is_graph_output():
        return False
    if any(get_input(node, name) is not None for name in _NEVER):
        return False
    bias = get_input(node, "bias")
    rows = [value for value in (get_input(node, name) for name in _BY_ROW) if value is not None]
    return all(constant(value) is not None for value in rows) and (
        bias is None or bias.dtype == get_input(node, "x").dtype
    )


def _agree(a: Any, b: Any) -> bool:
    if {n: v.value for n, v in a.attributes.items()} != {n: v.value for n, v in b.attributes.items()}:
        return False
    if not all(same(get_input(a, name), get_input(b, name)) for name in input_names(a) if name not in _BY_ROW):
        return False
    return all(_row_form(a, name) == _row_form(b, name) for name in ("codes", "scales", "zero_points"))


def _row_form(node: Any, name: str) -> tuple[Any, ...] | None:
    """Type and extents of one row."""
    value = get_input(node, name)
    return None if value is None else (value.dtype, *value.shape[1:])


def _parts(group: list[Any]) -> list[list[Any]]:
    """Runs of a group whose weights together stay below `LARGEST_WEIGHT`."""
    parts: list[list[Any]] = [[]]
    size = 0
    for node in group:
        n, blocks = get_input(node, "codes").shape[:2]
        weight = n * blocks * attribute(node, "block_size")
        if parts[-1] and size + weight > LARGEST_WEIGHT:
            parts.append([])
            size = 0
        parts[-1].append(node)
        size += weight
    return parts


def _merge(graph: Any, nodes: list[Any]) -> None:
    """The joined operator stands where the first one stood: x exists there, everything else is constant or shared."""
    import onnx_ir

    first = nodes[0]
    inputs = [_joined(graph, nodes, name) if name in _BY_ROW else get_input(first, name) for name in input_names(first)]
    sizes = [get_input(node, "codes").shape[0] for node in nodes]
    shape = onnx_ir.Shape([*first.outputs[0].shape[:-1], sum(sizes)])
    y = onnx_ir.Value(name=f"{first.outputs[0].name}_joined", shape=shape, type=first.outputs[0].type)
    joined = onnx_ir.Node(
        first.domain,
        first.op_type,
        inputs,
        first.attributes.values(),
        outputs=[y],
        name=f"{first.name}_joined",
    )
    name_layer(joined, get_input(joined, "codes").name.rsplit(".", 1)[0])
    lengths = new_initializer(graph, f"{y.name}.sizes", np.array(sizes, dtype=np.int64), onnx_ir.DataType.INT64)
    split = onnx_ir.Node(
        "",
        "Split",
        [y, lengths],
        [onnx_ir.AttrInt64("axis", -1)],
        outputs=[onnx_ir.Value(name=f"{y.name}_{i}") for i in range(len(nodes))],
        name=f"{first.name}_split",
    )
    graph.insert_before(first, [joined, split])
    for node, part in zip(nodes, split.outputs, strict=True):
        part.shape, part.type = node.outputs[0].shape, node.outputs[0].type
        node.outputs[0].replace_all_uses_with(part)
        graph.remove(node, safe=True)


def _joined(graph: Any, nodes: list[Any], name: str) -> Any:
    """The rows of an input of all nodes as one initializer; None when no node has it."""
    values = [get_input(node, name) for node in nodes]
    given = next((value for value in values if value is not None), None)
    if given is None:
        return None
    rows = [_rows(node, value, given) for node, value in zip(nodes, values, strict=True)]
    names = [value.name for value in values if value is not None]
    return new_initializer(graph, _joined_name(names), np.concatenate(rows), given.dtype)


def _rows(node: Any, value: Any, like: Any) -> NDArray[Any]:
    """One row for each output channel: per-tensor scales are repeated, an absent bias is zero."""
    n = get_input(node, "codes").shape[0]
    numbers = constant(value)
    if numbers is None:
        return np.zeros((n, *like.shape[1:]), dtype=like.dtype.numpy())
    return np.broadcast_to(numbers, (n, *numbers.shape[1:]))


def _joined_name(names: list[str]) -> str:
    """`a.to_q.bias`, `a.to_k.bias` become `a.to_q+to_k.bias`."""
    parts = [name.rsplit(".", 1) for name in names]
    if any(len(part) < 2 for part in parts):
        return "+".join(names)
    layers = [layer.split(".") for layer, _ in parts]
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*layers, strict=False))]
    ends = list(dict.fromkeys(".".join(layer[len(shared) :]) for layer in layers))
    listed = "+".join(ends) if len(ends) <= _NAMES_LISTED else f"{ends[0]}+{len(ends) - 1}_others"
    return ".".join([*shared, listed, parts[0][1]])
