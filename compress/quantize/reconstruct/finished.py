"""What is learned of a stage so far, file by file, so that a killed run continues where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.files import write_atomically


class Finished:
    """Tensors by name in the work folder of a stage; each file is whole or not there, and knows what it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str, key: str) -> dict[str, Tensor] | None:
        """What was saved under that name with the same key; None if nothing was, or something else."""
        path = self._path(name)
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
            return dict(load_file(path))
        except (OSError, SafetensorError):
            return None

    def save(self, name: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors. Raises OutputError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {label: tensor.detach().cpu().clone().contiguous() for label, tensor in tensors.items()}
        write_atomically(self._path(name), lambda partial: save_file(own, partial, metadata={"key": key}))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
