"""Recognizes GELU (tanh) and SiLU after an operator, however the exporter spells them: by what they compute.

The nodes between an operator's output and the next value that anything else reads form a function of one number when
they are elementwise and their other inputs are single constants. That function is computed at some points and compared
with the known ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.export.graph_edit import attribute, constant

_LONGEST = 10  # nodes; GELU spelled out takes 8
_TOLERANCE = 1e-6  # constants of the graph are rounded to float32
_POINTS = np.concatenate([np.linspace(-12.0, 12.0, 193), [1e-3, -1e-3]])

Numbers = NDArray[np.float64]


class Activation(NamedTuple):
    """A recognized function: its name in the schema, and the nodes that compute it, in order."""

    name: str
    nodes: list[Any]


def _sigmoid(x: Numbers) -> Numbers:
    y: Numbers = 1.0 / (1.0 + np.exp(-x))
    return y


def _gelu_tanh(x: Numbers) -> Numbers:
    y: Numbers = 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / pi) * (x + 0.044715 * x**3)))
    return y


def _silu(x: Numbers) -> Numbers:
    y: Numbers = x * _sigmoid(x)
    return y


_KNOWN: Final = {"gelu_tanh": _gelu_tanh(_POINTS), "silu": _silu(_POINTS)}
_ELEMENTWISE: Final[dict[str, Callable[..., Numbers]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Tanh": np.tanh,
    "Sigmoid": _sigmoid,
    "Gelu": _gelu_tanh,
    "Swish": _silu,
}


def activation_after(y: Any) -> Activation | None:
    """The function applied to `y`, when nothing else reads `y` or what lies between; None without one."""
    values: dict[Any, Numbers] = {y: _POINTS}
    nodes: list[Any] = []
    while len(nodes) < _LONGEST and not any(value.is_graph_output() for value in values):
        node = next((n for value in values for n in value.consumers() if n not in nodes and _fits(n, values)), None)
        if node is None:
            return None
        nodes.append(node)
        values[node.outputs[0]] = _computed(node, values)
        if _is_closed(values, nodes):
            names = [name for name, known in _KNOWN.items() if _close(values[node.outputs[0]], known)]
            if names and not node.outputs[0].is_graph_output():
                return Activation(names[0], nodes)
    return None


def _fits(node: Any, values: dict[Any, Numbers]) -> bool:
    if node.domain or node.op_type not in _ELEMENTWISE:
        return False
    if node.op_type == "Gelu" and attribute(node, "approximate") != "tanh":
        return False
    if node.op_type == "Swish" and attribute(node, "alpha") not in (None, 1.0):
        return False
    return all(value in values or _number(value) is not None for value in node.inputs)


def _number(value: Any) -> float | None:
    """A constant of one element that does not add an axis to what it meets."""
    numbers = constant(value)
    return float(numbers.reshape(())) if numbers is not None and numbers.size == 1 and numbers.ndim <= 1 else None


def _computed(node: Any, values: dict[Any, Numbers]) -> Numbers:
    given = [values[value] if value in values else np.float64(_number(value) or 0.0) for value in node.inputs]
    with np.errstate(all="ignore"):
        return np.asarray(_ELEMENTWISE[node.op_type](*given), dtype=np.float64)


def _is_closed(values: dict[Any, Numbers], nodes: list[Any]) -> bool:
    """Whether only the last value is read outside of `nodes`."""
    inner = list(values)[:-1]
    return all(consumer in nodes for value in inner for consumer in value.consumers())


def _close(found: Numbers, known: Numbers) -> bool:
    return bool(np.allclose(found, known, rtol=_TOLERANCE, atol=_TOLERANCE))
