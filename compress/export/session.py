"""Running an exported denoiser with onnxruntime."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressError, ExportError, InputError
from compress.export.manifest import read_manifest
from compress.kernels import backends, cpu_library

_CPUINFO = Path("/proc/cpuinfo")
_ERRORS_ONLY = 3
_THREADS_ENTRY = "compress.threads"  # read by the library, cpu/onnxruntime/register.cpp
_LOG = logging.getLogger(__name__)


def open_session(
    model: Path | str | bytes, *, threads: int | None = None, spinning: bool = True, kernels: bool = False
) -> Any:
    """An `onnxruntime.InferenceSession` (CPU) of a model file, of the folder that holds it, or of a model's bytes.

    `threads` is the number of threads within an operator, onnxruntime's choice when None. `spinning` (its default) lets
    idle threads wait busily, which takes their cores from whatever else runs between two calls. `kernels` registers our
    operators where their library is installed, and logs once where it is not; without them, or where COMPRESS_KERNEL
    names another backend than the C++ kernels, the functions run that the file holds.

    Raises:
        InputError: there is no such file, or COMPRESS_KERNEL names no backend. ExportError: onnxruntime refuses it;
            carries the reason. RunError: there is no library, and COMPRESS_REQUIRE_KERNELS wants one.
    """
    import onnxruntime

    content = model if isinstance(model, bytes) else str(_model_file(Path(model)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if _bytes_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if kernels:
            _register(options, threads)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except CompressError:
        raise
    except Exception as error:  # pybind types without a common base
        reason = str(error).strip().splitlines()[0]
        where = None if isinstance(model, bytes) else str(model)
        raise ExportError(f"onnxruntime cannot open it: {reason}", where=where) from error


def kernels_available() -> bool:
    """Whether a session with `kernels` runs our operators, not the functions in the file."""
    return backends.cpu_is_chosen() and cpu_library.library() is not None


def _register(options: Any, threads: int | None) -> None:
    if not backends.cpu_is_chosen():
        return
    if cpu_library.required():
        cpu_library.the_library()
    if not kernels_available():
        _announce_functions()
        return
    if threads is not None:
        options.add_session_config_entry(_THREADS_ENTRY, str(threads))
    options.register_custom_ops_library(str(cpu_library.PATH))


@cache
def _announce_functions() -> None:
    _LOG.warning(f"no CPU kernels, low-bit ONNX operators run as standard ones, slower: {cpu_library.reason()}")


@cache
def _bytes_saturate() -> bool:
    """Whether products of bytes and int8 weights saturate: on x86 without VNNI, or where that cannot be told.

    onnxruntime then makes such weights uint8 if asked to, which is exact, and slower where it is not needed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (_CPUINFO.is_file() and "vnni" in _CPUINFO.read_text(encoding="utf8", errors="replace"))


def _model_file(path: Path) -> Path:
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise InputError("no such file", where=str(file), hint="give a model.onnx, or the folder that holds it")
    return file


class OnnxDenoiser:
    """An exported denoiser, called as `Denoise`: `(sample [b, c, h, w], t [b], condition) -> prediction`.

    Batches above the file's bound run in pieces. Tensors share memory with onnxruntime where types agree. `kernels` as
    in `open_session`.
    """

    def __init__(
        self, folder: Path | str, *, threads: int | None = None, spinning: bool = True, kernels: bool = True
    ) -> None:
        folder = Path(folder)
        folder = folder.parent if folder.is_file() else folder
        self.session = open_session(folder, threads=threads, spinning=spinning, kernels=kernels)
        self.manifest = read_manifest(folder)
        self.largest_batch: int | None = self.manifest["largest_batch"]
        self._inputs = {entry["name"]: getattr(torch, entry["dtype"]) for entry in self.manifest["inputs"]}

    def __call__(self, sample: Tensor, timestep: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Prediction in the type, and on the device, of `sample`.

        Raises:
            InputError: a condition is missing or not an input of the model, or batch sizes differ.
        """
        feeds = self._feeds({"sample": sample, "timestep": timestep, **condition})
        size = self.largest_batch or max(len(sample), 1)
        pieces = [self._run({k: v[i : i + size] for k, v in feeds.items()}) for i in range(0, len(sample), size)]
        prediction = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return prediction.to(sample.device, sample.dtype)

    def _feeds(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if given.keys() != self._inputs.keys():
            wrong = ", ".join(sorted(given.keys() ^ self._inputs.keys()))
            raise InputError(f"inputs do not fit: {wrong}", hint=f"the model takes {', '.join(self._inputs)}")
        sizes = {name: len(value) for name, value in given.items()}
        if len(set(sizes.values())) > 1 or not len(given["sample"]):
            raise InputError(f"batch sizes {sizes}", hint="give every input the same, at least 1")
        return {name: _as_type(given[name], dtype).cpu().contiguous() for name, dtype in self._inputs.items()}

    def _run(self, feeds: Mapping[str, Tensor]) -> Tensor:
        (prediction,) = self.session.run(None, {name: value.numpy() for name, value in feeds.items()})
        return torch.from_numpy(prediction)


def _as_type(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats go to whole numbers by rounding: models without float timesteps take the nearest."""
    rounds = value.is_floating_point() and not dtype.is_floating_point
    return (value.detach().round() if rounds else value.detach()).to(dtype)
