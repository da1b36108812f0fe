"""The operator nodes of an exported file, to be found again by the layers they come from.

Fusing renames, joins and removes nodes, so weights are the only link: a layer's node is the one whose codes, or rows of
codes behind a Split, are the layer's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.export.functions import node_attributes
from compress.export.graph_edit import constant, get_input, input_names, operators_in, sole_consumer

_FOLDED = ("bias", "smooth", "residual")  # inputs that may hold what followed or preceded the layer
_BY_ROW = ("codes", "scales", "zero_points", "bias")


class Written(NamedTuple):
    """A layer's call as the file makes it.

    tensors: inputs by name. attributes: all of them. expected: what `rows` of the output's last axis must be.
    """

    tensors: dict[str, Tensor]
    attributes: dict[str, Any]
    expected: Tensor
    rows: slice


class _Place(NamedTuple):
    node: Any
    rows: slice


class FileNodes:
    """Operator nodes of the `model.onnx` of a folder, by their weights."""

    def __init__(self, folder: Path) -> None:
        import onnx_ir

        self._model = onnx_ir.load(folder / "model.onnx")
        self._places: dict[str, list[_Place]] = {}
        for node in operators_in(self._model.graph):
            codes = constant(get_input(node, "codes"))
            if codes is None:
                continue
            for rows in _pieces(node):
                self._places.setdefault(_digest(codes[rows]), []).append(_Place(node, rows))

    def find(self, tensors: Mapping[str, Tensor], y: Tensor) -> Written | None:
        """How the file calls the layer that computed `y` from `tensors`; None when no node has its codes.

        The node keeps its own weights and attributes, and gets the layer's x. What was folded into it from outside is
        left away where it comes first (smoothing) or cannot be told from the layer's own part (bias); its activation
        function is applied to `y`, a residual of the same magnitude added, unless the layer's call has one itself.
        """
        places = self._places.get(_digest(tensors["codes"].detach().cpu().numpy()), [])
        if not places:
            return None
        place = max(places, key=lambda place: _agreement(place, tensors))
        given = {name: get_input(place.node, name) for name in input_names(place.node)}
        own = {name: _tensor(value, tensors.get(name)) for name, value in given.items() if value is not None}
        found = {n: t for n, t in own.items() if t is not None and (n in tensors or n not in _FOLDED)}
        attributes = node_attributes(place.node)
        expected = _ACTIVATIONS[attributes.get("activation", "none")](y.float()).to(y.dtype)
        if given.get("residual") is not None and "residual" not in tensors:
            found["residual"] = expected.flip(0, -1).contiguous()
            expected = expected + found["residual"]
        return Written(found | {"x": tensors["x"]}, attributes, expected, place.rows)


_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "none": lambda y: y,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


def _pieces(node: Any) -> list[slice]:
    """All rows, and those of each part when a Split cuts the output channels."""
    split = sole_consumer(node.outputs[0])
    sizes = constant(split.inputs[1]) if split is not None and split.op_type == "Split" and split.inputs[1:] else None
    ends = [0] if sizes is None else [0, *np.cumsum(sizes).tolist()]
    return [slice(None), *(slice(start, end) for start, end in pairwise(ends))]


def _agreement(place: _Place, tensors: Mapping[str, Tensor]) -> int:
    """How many inputs of the node are the layer's own; all of them in the node that the layer became."""
    return sum(_agrees(place, name, tensors.get(name)) for name in input_names(place.node))


def _agrees(place: _Place, name: str, own: Tensor | None) -> bool:
    value = get_input(place.node, name)
    found = _tensor(value, None)
    if own is None:
        return value is None or name in _FOLDED
    if found is None:
        return value is not None  # computed, so nothing can be said
    if found.dtype != own.dtype or (name not in _BY_ROW and found.shape != own.shape):
        return False
    rows = found[place.rows] if name in _BY_ROW and len(found) > 1 else found  # scales of tensors are repeated
    return bool((rows.float() == own.detach().cpu().float()).all())


def _tensor(value: Any, otherwise: Tensor | None) -> Tensor | None:
    """An initializer in torch; `otherwise` for what the file computes."""
    numbers = constant(value)
    if numbers is None:
        return otherwise
    numbers = np.array(numbers)
    if numbers.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(numbers.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(numbers)


def _digest(codes: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(codes).tobytes() + repr(codes.shape).encode()).hexdigest()
