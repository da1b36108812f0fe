"""Files of a trajectory: chunks of logged model calls, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.errors import RunError
from compress.files import write_atomically

_ROW_TENSORS = ("sample", "t", "sigma", "call", "index")
_CONDITION, _NULL = "condition.", "null."


@dataclass(frozen=True)
class Chunk:
    """Logged model calls of consecutive samples: m rows of k samples. Both guidance halves share a row.

    Conditions are kept per sample, not per row; a null condition equal for all samples of the chunk has one row.
    """

    sample: Tensor  # [m, c, h, w] what the model saw
    t: Tensor  # [m] float32
    sigma: Tensor  # [m] float32
    call: Tensor  # [m] int32, number of the model call
    index: Tensor  # [m] int32, number of the sample
    condition: dict[str, Tensor]  # each [k, ...]
    null: dict[str, Tensor]  # each [k, ...] or [1, ...]; empty without guidance
    first: int  # number of the first sample


def save_chunk(path: Path, chunk: Chunk, spec_hash: str) -> None:
    """Write the chunk atomically. Raises OutputError."""
    tensors = {name: getattr(chunk, name) for name in _ROW_TENSORS}
    tensors["first"] = torch.tensor([chunk.first])
    tensors |= {_CONDITION + name: _own(tensor) for name, tensor in chunk.condition.items()}
    tensors |= {_NULL + name: _own(shared_row(tensor)) for name, tensor in chunk.null.items()}
    # One metadata key only: safetensors writes several in no fixed order, and equal chunks must be equal bytes.
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata={"trajectory": spec_hash}))


def load_chunk(path: Path) -> Chunk:
    """The chunk in memory. Raises RunError when it is missing or damaged."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    return Chunk(
        **{name: tensors[name] for name in _ROW_TENSORS},
        condition=_under(tensors, _CONDITION),
        null=_under(tensors, _NULL),
        first=int(tensors["first"]),
    )


def load_sigma(path: Path) -> Tensor:
    """Only the noise levels `[m]` of a chunk. Raises RunError."""
    try:
        with safe_open(path, "pt") as file:
            sigma: Tensor = file.get_tensor("sigma")
            return sigma
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def chunk_owner(path: Path) -> str | None:
    """Hash of the trajectory that a chunk belongs to, or None when the file is no complete chunk."""
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            return metadata.get("trajectory")
    except (OSError, SafetensorError):
        return None


def shared_row(tensor: Tensor) -> Tensor:
    """The first row alone when all rows are equal, else the tensor."""
    return tensor[:1] if bool((tensor == tensor[:1]).all()) else tensor


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU: safetensors refuses tensors that share memory, as two conditions of an adapter may."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"damaged or missing: {error}", where=str(path), hint="log the trajectory again; whole chunks stay")
