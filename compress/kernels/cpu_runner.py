"""Threads for the CPU kernels: PyTorch's own OpenMP pool where there is one, so that no core gets two threads."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Final

import torch

_MAPS = Path("/proc/self/maps")
_RUNTIMES: Final = ("libgomp", "libiomp5", "libomp")


def create(library: ctypes.CDLL, threads: int) -> int | None:
    """Address of a runner with that many threads; None, the calling thread alone, for one.

    The caller keeps it for as long as the process lives: another thread may be computing with it.
    """
    if threads <= 1:
        return None
    parallel = gomp_parallel()
    if parallel is not None:
        runner: int | None = library.compress_openmp_create(parallel, threads)
        if runner:
            return runner
    return library.compress_pool_create(threads) or None


@functools.cache
def gomp_parallel() -> int | None:
    """Address of `GOMP_parallel` in the OpenMP runtime that PyTorch uses; None where it uses another, or none."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    path = openmp_runtime()
    if path is None:
        return None
    try:
        function = ctypes.CDLL(str(path)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def openmp_runtime() -> Path | None:
    """PyTorch's OpenMP library: one beside PyTorch, else the only one in this process."""
    home = Path(torch.__file__).resolve().parent
    loaded = [path for path in _mapped() if path.name.startswith(_RUNTIMES)]
    own = [path for path in loaded if path.is_relative_to(home) or path.parent.name == "torch.libs"]
    if own:
        return own[0]
    return loaded[0] if len(loaded) == 1 else None


def _mapped() -> list[Path]:
    """Files mapped into this process; none where the system does not tell."""
    if not os.access(_MAPS, os.R_OK):
        return []
    lines = (line.split(maxsplit=5) for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines())
    return sorted({Path(fields[5].strip()) for fields in lines if len(fields) == 6 and fields[5].startswith("/")})
