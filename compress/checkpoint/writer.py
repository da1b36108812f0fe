"""Writing a component's tensors one at a time, in shards of bounded size, under the file names diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from compress.errors import explain_os_error, os_error_of

BASE = "diffusion_pytorch_model"
SINGLE = f"{BASE}.safetensors"
INDEX = f"{BASE}.safetensors.index.json"


class ShardWriter:
    """Collects tensors and writes a shard whenever `shard_bytes` are reached, so memory stays bounded.

    Use as a context manager; the files have their final names when it closes without an error. Tensors come out in the
    order of their names within a shard, so equal input gives equal bytes.
    """

    def __init__(self, folder: Path, shard_bytes: int = 2 * 2**30) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.shards: list[list[str]] = []
        self.total = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Queue one tensor; writes when a shard is full."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self._flush()
        self.pending[name] = tensor.detach().to("cpu").contiguous().clone()
        self.pending_bytes += size
        self.total += size

    def _flush(self) -> None:
        path = self.folder / f"{BASE}.part{len(self.shards):05d}"
        try:
            save_file(dict(sorted(self.pending.items())), path, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            reason = os_error_of(error)
            if reason is None:
                raise
            raise explain_os_error(reason, self.folder) from error
        self.shards.append(sorted(self.pending))
        self.pending, self.pending_bytes = {}, 0

    def close(self) -> None:
        """Write the rest, and give the shards their final names."""
        if self.pending or not self.shards:
            self._flush()
        count = len(self.shards)
        names = [SINGLE] if count == 1 else [f"{BASE}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for number, name in enumerate(names):
            (self.folder / f"{BASE}.part{number:05d}").rename(self.folder / name)
        if count > 1:
            weight_map = {tensor: names[i] for i, shard in enumerate(self.shards) for tensor in shard}
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
