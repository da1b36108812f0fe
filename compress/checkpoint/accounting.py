"""How many bytes a safetensors file will have, from names, types and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# In the order in which safetensors lays tensors out.
_CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: place for place, dtype in enumerate(_CODES)}


class PlannedTensor(NamedTuple):
    """A tensor that will be stored."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def planned_tensors(skeleton: nn.Module, stored: Mapping[str, torch.dtype]) -> list[PlannedTensor]:
    """What a component's state will be on disk.

    Args:
        skeleton: the final model on the meta device, packed layers swapped in.
        stored: types of the source file by name; a tensor that is not there counts as the skeleton has it.
    """
    state: Mapping[str, Tensor] = skeleton.state_dict()
    types = {name: stored.get(_source_name(name), tensor.dtype) for name, tensor in state.items()}
    return [PlannedTensor(name, types[name], tuple(tensor.shape)) for name, tensor in state.items()]


def _source_name(name: str) -> str:
    """What the source calls a tensor: the bias of a split layer went to its backbone."""
    return name.removesuffix(".backbone.bias") + ".bias" if name.endswith(".backbone.bias") else name


def file_bytes(tensors: Sequence[PlannedTensor]) -> int:
    """Size of one safetensors file: 8 bytes of length, the JSON header padded to a multiple of 8, the data.

    safetensors lays tensors out by type, then by name; the offsets' digits depend on that order.
    """
    ordered = sorted(tensors, key=lambda t: (_ORDER[t.dtype], t.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.bytes
        entry = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[tensor.name] = entry
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset
