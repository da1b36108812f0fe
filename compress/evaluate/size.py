"""Bytes on disk by tensor class, size ratios and bits per weight, read from file headers; no tensor is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from compress.errors import ModelError
from compress.models.layout import component_files, has_weights
from compress.report.model import Artefact, Metric

_CLASS_OF = {
    "weight_packed": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zero points",
    "input_scale": "activation scales",
    "input_zero_point": "activation scales",
    "query_scale": "activation scales",
    "key_scale": "activation scales",
    "value_scale": "activation scales",
    "softmax_scale": "activation scales",
    "weight_codebook": "tables",
    "table": "tables",
    "input_smooth": "tables",
    "low_rank_a": "low rank",
    "low_rank_b": "low rank",
    "bias": "biases",
}
_PARTS = (".backbone", ".skip")  # operators of a split layer
_KEPT, _HEADER = "kept", "header"
_ONNX_PATTERNS = ("*.onnx", "*.onnx.data", "*.onnx_data*")


class StoredTensor(NamedTuple):
    """One tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Header(NamedTuple):
    """What a safetensors file holds: its tensors by name, and the bytes before the first of them."""

    tensors: dict[str, StoredTensor]
    bytes: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file: 8 bytes of length, little-endian, then JSON.

    Raises:
        ModelError: the file is no safetensors file, or is shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if length > size:
                raise ModelError("is no safetensors file, or truncated", where=str(path))
            entries = json.loads(file.read(length))
        tensors = {name: _stored(entry) for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the header cannot be read: {error}", where=str(path)) from error
    if 8 + length + sum(tensor.bytes for tensor in tensors.values()) != size:
        raise ModelError("its size is not what its header says", where=str(path), hint="copy or download it anew")
    return Header(tensors, 8 + length)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, or of every component of a pipeline; variants (`.fp16`) do not count.

    Raises:
        ModelError: there are none, or a shard is missing.
    """
    parts = [part for part in [folder, *sorted(folder.glob("*/"))] if has_weights(part)]
    return [file for part in parts or [folder] for file in component_files(part)]


def size_bytes(folder: Path) -> int:
    """Bytes of the folder's weight files, headers included."""
    return sum(path.stat().st_size for path in weight_files(folder))


def onnx_bytes(folder: Path) -> int:
    """Bytes of the ONNX files in a folder and below it, external data included. Raises ModelError if there are none."""
    files = {path for pattern in _ONNX_PATTERNS for path in folder.rglob(pattern)}
    if not files:
        raise ModelError("there are no ONNX files", where=str(folder))
    return sum(path.stat().st_size for path in files)


def bytes_by_class(folder: Path) -> dict[str, int]:
    """Bytes of the weight files by tensor class; they add up to `size_bytes`. Classes without bytes are left out.

    A tensor's class follows from the end of its name: codes, scales, zero points, activation scales, tables, low rank
    and biases as the checkpoint writes them; every other tensor is `kept`.
    """
    totals = dict.fromkeys([*_CLASS_OF.values(), _KEPT, _HEADER], 0)
    for header in map(read_header, weight_files(folder)):
        totals[_HEADER] += header.bytes
        for name, tensor in header.tensors.items():
            totals[tensor_class(name)] += tensor.bytes
    return {name: total for name, total in totals.items() if total}


def tensor_class(name: str) -> str:
    """The class under which `bytes_by_class` counts a tensor of this name."""
    return _CLASS_OF.get(name.rpartition(".")[2], _KEPT)


def float_bytes(folder: Path, bits: int = 32) -> int:
    """Bytes that the folder's tensors would take with every floating-point number at `bits` bits, headers left out."""
    total = 0
    for header in map(read_header, weight_files(folder)):
        for tensor in header.tensors.values():
            floating = tensor.dtype.startswith(("F", "BF"))
            total += tensor.elements * bits // 8 if floating else tensor.bytes
    return total


def bits_per_weight(folder: Path, weights: Mapping[str, int]) -> float:
    """Bits a component stores per weight of the named layers: codes, scales, zero points, tables, low-rank factors.

    Args:
        weights: logical weight count of each layer; packed shapes are padded, so the file alone does not say.

    Raises:
        ModelError: a layer has no tensors in the files.
    """
    stored = dict.fromkeys(weights, 0)
    for header in map(read_header, weight_files(folder)):
        for name, tensor in header.tensors.items():
            layer = name.rpartition(".")[0]
            if layer not in stored and layer.endswith(_PARTS):
                layer = layer.rpartition(".")[0]
            if layer in stored and tensor_class(name) not in ("biases", "activation scales"):
                stored[layer] += tensor.bytes
    empty = sorted(layer for layer, total in stored.items() if total == 0)
    if empty or not stored:
        raise ModelError("has no stored weights", where=", ".join(empty[:3]) or str(folder))
    return 8 * sum(stored.values()) / sum(weights.values())


def size_metrics(folder: Path, original: Path, *, artefact: Artefact) -> list[Metric]:
    """`size_bytes` (also per tensor class, for safetensors) and `size_ratio` (against fp32; labelled, against fp16).

    Args:
        folder: a component or pipeline folder, or for the artefact `onnx` the folder of the ONNX files.
        original: the same component or pipeline before compression, stored in any float type.
    """
    classes = {} if artefact == "onnx" else bytes_by_class(folder)
    total = onnx_bytes(folder) if artefact == "onnx" else sum(classes.values())
    found = [Metric(name="size_bytes", value=total, unit="bytes", artefact=artefact)]
    for name, count in classes.items():
        labels = {"tensor_class": name}
        found.append(Metric(name="size_bytes", value=count, unit="bytes", artefact=artefact, labels=labels))
    for bits, labels in ((32, {}), (16, {"against": "float16"})):
        ratio = total / float_bytes(original, bits)
        found.append(Metric(name="size_ratio", value=ratio, artefact=artefact, labels=labels))
    return found


def _stored(entry: Mapping[str, object]) -> StoredTensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise ValueError("an entry lacks its dtype, shape or data_offsets")
    return StoredTensor(dtype, tuple(shape), offsets[1] - offsets[0])
