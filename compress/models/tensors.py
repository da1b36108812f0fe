"""Reads single tensors, or rows of them, out of the safetensors files of a component."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from compress.errors import ModelError
from compress.models.layout import INDEX_SUFFIX, component_files, weight_map

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorReader:
    """Tensors of one component by name, read when asked for; a context manager.

    Opening parses the headers only, which also proves that no file is truncated: safetensors checks that the offsets
    of its header cover the file exactly.
    """

    def __init__(self, files: list[Path]) -> None:
        self._handles: dict[Path, Any] = {}
        self._file_of: dict[str, Path] = {}
        try:
            for path in files:
                self._open(path)
        except ModelError:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        self._handles[path] = handle = open_safetensors(path)
        names: list[str] = list(handle.keys())
        for name in names:
            if name in self._file_of:
                raise ModelError(f"tensor {name!r} is also in {self._file_of[name].name}", where=str(path))
            self._file_of[name] = path

    def names(self) -> list[str]:
        """Every tensor name, sorted."""
        return sorted(self._file_of)

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        if name not in self._file_of:
            raise ModelError(f"there is no tensor {name!r}", where=self._where())
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, from the header."""
        code = self._handle(name).get_slice(name).get_dtype()
        if code not in _DTYPES:
            raise ModelError(f"tensor {name!r} has the unknown type {code}", where=str(self.file(name)))
        return _DTYPES[code]

    def get(self, name: str) -> Tensor:
        """A whole tensor on the CPU."""
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start:stop` of a tensor; only their bytes are read."""
        rows: Tensor = self._handle(name).get_slice(name)[start:stop]
        return rows

    def close(self) -> None:
        """Let go of the files; reading afterwards is an error."""
        self._handles.clear()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, name: str) -> Any:
        path = self.file(name)
        if path not in self._handles:
            raise ModelError("the reader is closed", where=str(path))
        return self._handles[path]

    def _where(self) -> str:
        return ", ".join(sorted({str(path) for path in self._file_of.values()}))


def read_tensors(folder: Path | str) -> TensorReader:
    """Reader over the (sharded) safetensors of a component.

    Raises:
        ModelError: a file is missing, truncated or superfluous, or disagrees with the index.
    """
    reader = TensorReader(component_files(folder))
    index = next(Path(folder).glob(f"*{INDEX_SUFFIX}"), None)
    if index is not None:
        try:
            _check_index(reader, index)
        except ModelError:
            reader.close()
            raise
    return reader


def open_safetensors(path: Path) -> Any:
    """An open safetensors file.

    Raises:
        ModelError: it is missing, truncated, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"is truncated or no safetensors file: {error}", where=str(path), hint="copy or download it anew"
        ) from error


def _check_index(reader: TensorReader, index: Path) -> None:
    expected = weight_map(index)
    for name, file in expected.items():
        if reader.file(name).name != file:
            raise ModelError(f"says that {name!r} is in {file}; it is in {reader.file(name).name}", where=str(index))
    unnamed = sorted(set(reader.names()) - set(expected))
    if unnamed:
        raise ModelError(f"does not name tensor {unnamed[0]!r}", where=str(index), hint="copy the component anew")
