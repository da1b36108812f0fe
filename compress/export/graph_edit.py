"""Looking at and changing nodes of our operators in an `onnx_ir` graph; inputs go by their names in the schema."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compress.kernels.schema import DOMAIN, OPERATORS, Operator

_BY_NAME: Final[dict[str, Operator]] = {operator.onnx_name: operator for operator in OPERATORS}


def operators_in(graph: Any) -> list[Any]:
    """The nodes of our domain, in order; the list stays as it is while the graph changes."""
    return [node for node in graph if node.domain == DOMAIN]


def input_names(node: Any) -> tuple[str, ...]:
    """Names of all inputs the node's operator has, present or not."""
    return tuple(tensor.name for tensor in _BY_NAME[node.op_type].inputs)


def get_input(node: Any, name: str) -> Any:
    """The value of an input, None when it is absent or the operator has no such input."""
    names = input_names(node)
    place = names.index(name) if name in names else len(node.inputs)
    return node.inputs[place] if place < len(node.inputs) else None


def set_input(node: Any, name: str, value: Any) -> None:
    """Give an input; absent ones before it stay absent."""
    place = input_names(node).index(name)
    node.resize_inputs(max(place + 1, len(node.inputs)))
    node.replace_input_with(place, value)


def attribute_names(node: Any) -> tuple[str, ...]:
    """Names of all attributes the node's operator has."""
    return tuple(a.name for a in _BY_NAME[node.op_type].attributes)


def attribute(node: Any, name: str) -> Any:
    """The value of an attribute, None without it."""
    found = node.attributes.get(name)
    return None if found is None else found.value


def is_convolution(node: Any) -> bool:
    """Whether channels are axis 1 and not the last one."""
    return "kernel" in node.attributes


def constant(value: Any) -> NDArray[Any] | None:
    """The numbers of an initializer; None for anything that is computed or given at run time."""
    if value is None or value.const_value is None or value.producer() is not None or value.is_graph_input():
        return None
    numbers: NDArray[Any] = value.const_value.numpy()
    return numbers


def sole_consumer(value: Any) -> Any:
    """The one node that reads the value, once; None when there are others or the graph returns it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def same(a: Any, b: Any) -> bool:
    """Whether two values are one, both absent, or constants of equal bytes."""
    if a is b:
        return True
    left, right = constant(a), constant(b)
    if left is None or right is None or a.dtype != b.dtype or left.shape != right.shape:
        return False
    return left.tobytes() == right.tobytes()


def new_initializer(graph: Any, name: str, numbers: NDArray[Any], dtype: Any) -> Any:
    """An initializer of the graph; a name that is taken gets a number."""
    import onnx_ir

    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}_{count}", count + 1
    tensor = onnx_ir.tensor(np.ascontiguousarray(numbers), dtype=dtype, name=unique)
    shape = onnx_ir.Shape(numbers.shape)
    value = onnx_ir.Value(name=unique, shape=shape, type=onnx_ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def channel_vector(value: Any, channels: int, rank: int, images: bool) -> NDArray[Any] | None:
    """The numbers of a constant that broadcasts along the channels of a tensor of `rank`, and only along them, flat.

    Channels are the last axis, axis 1 of `images`. None for every other value.
    """
    numbers = constant(value)
    if numbers is None:
        return None
    along = [channels, 1, 1] if images else [channels]
    front = len(numbers.shape) - len(along)
    fits = 0 <= front <= rank - len(along) and list(numbers.shape) == [1] * front + along
    return numbers.reshape(-1) if fits else None


def take_over(graph: Any, node: Any, replaced: list[Any]) -> None:
    """Let the node's output stand for the output of the last of `replaced`, and remove those nodes."""
    last = replaced[-1].outputs[0]
    last.replace_all_uses_with(node.outputs[0])
    for old in reversed(replaced):
        graph.remove(old, safe=True)
