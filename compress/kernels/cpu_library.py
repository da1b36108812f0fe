"""The C++ kernels of `cpu/`: finds and loads their library, gives them threads, calls them.

Results do not depend on the number of threads; it is PyTorch's, `torch.get_num_threads()`. `COMPRESS_REQUIRE_KERNELS=1`
makes a missing library an error; else it is announced once, and other backends compute.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from compress.errors import CompressError, FormatError, InputError, MemoryBudgetError, RunError
from compress.kernels import cpu_abi, cpu_call, cpu_runner
from compress.kernels.call import Call, Facts, MatmulCall

ISAS: Final = ("avx512vnni", "avxvnni", "avx2", "neon_dot", "scalar")
"""Instruction sets with kernels, best first; COMPRESS_KERNEL may name one."""
PATH: Final = Path(__file__).parent / "cpu" / "libcompress_kernels.so"
"""Where installations have the library, editable ones too."""
REQUIRE: Final = "COMPRESS_REQUIRE_KERNELS"
_REBUILD = "install again, or `make kernels`, with a C++17 compiler on the path"
_LOG = logging.getLogger(__name__)
_MESSAGE_BYTES = 512


class RefusedValues(RunError):
    """The kernels do not compute a call because of values in it, which its facts do not tell."""


class Library:
    """The loaded library. Raises OSError or AttributeError when the file is not one, RunError for another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        self.functions.compress_kernels_abi.restype = ctypes.c_int32
        found = self.functions.compress_kernels_abi()
        if found != cpu_abi.ABI:
            raise RunError(f"{path} has interface {found}, this package needs {cpu_abi.ABI}", hint=_REBUILD)
        cpu_abi.declare(self.functions)
        self._runners: dict[tuple[int, int], int | None] = {}
        self._supported: dict[tuple[str, str, Facts], str] = {}

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name: bytes = self.functions.compress_isa()
        return name.decode()

    @property
    def isas(self) -> tuple[str, ...]:
        """Every instruction set that this CPU runs, best first."""
        names: bytes = self.functions.compress_isas()
        return tuple(names.decode().split())

    def use_isa(self, name: str | None) -> None:
        """Uses an instruction set from now on, None: the best; not while another thread computes.

        InputError when this CPU, or this library, lacks it.
        """
        if name is not None and name not in self.isas:
            raise InputError(f"this CPU has no {name} kernels", hint=f"available: {', '.join(self.isas)}")
        if self.functions.compress_use_isa(None if name is None else name.encode()):
            raise RunError(f"the kernel library refused the instruction set {name}")

    def runner(self, threads: int) -> int | None:
        """Address of a runner with that many threads, made once for each process and number."""
        key = (os.getpid(), threads)  # threads do not survive a fork
        if key not in self._runners:
            self._runners[key] = cpu_runner.create(self.functions, threads)
        return self._runners[key]

    def refusal(self, op_name: str, facts: Facts) -> str:
        """Why these kernels do not take a layer; empty when they do."""
        key = (self.isa, op_name, facts)
        if key not in self._supported:
            self._supported[key] = cpu_call.refusal(op_name, facts) or self._ask(op_name, facts)
        return self._supported[key]

    def _ask(self, op_name: str, facts: Facts) -> str:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        given = (ctypes.byref(structure) for structure in cpu_call.structures(facts))
        function = getattr(self.functions, f"compress_{op_name}_supported")
        if function(*given, message, _MESSAGE_BYTES) == cpu_abi.OK:
            return ""
        return message.value.decode(errors="replace") or f"{op_name} refuses the layer without a reason"

    def compute(self, call: Call) -> Tensor:
        """The operator's result in x's type.

        FormatError for calls that do not fit together, RefusedValues for what `refusal` could not know, such as
        activation zero points that are no codes.
        """
        call.check()
        bound = cpu_call.Bound(call)
        if bound.y.numel():
            head = (bound.x.data_ptr(), *self._head(bound))
            self._run(call, head, bound, self.runner(torch.get_num_threads()))
        return bound.y.to(call.x.dtype)

    def _run(self, call: Call, head: tuple[Any, ...], bound: cpu_call.Bound, *tail: Any, name: str = "") -> None:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        function = getattr(self.functions, f"compress_{name or call.name}")
        options = ctypes.byref(bound.options)
        status = function(*head, options, bound.y.data_ptr(), *tail, message, _MESSAGE_BYTES)
        if status != cpu_abi.OK:
            raise _error(status, message.value.decode(errors="replace"), f"compress::{call.name}")

    def _head(self, bound: cpu_call.Bound) -> tuple[Any, ...]:
        weight = ctypes.byref(bound.weight)
        if bound.geometry is not None:
            return ctypes.byref(bound.geometry), weight
        return bound.x.numel() // bound.x.shape[-1], weight

    def time_product(self, call: MatmulCall) -> tuple[float, Tensor]:
        """Seconds of the matrix product of one qmatmul, its rows being quantized already, and the result."""
        call.check()
        bound, seconds = cpu_call.Bound(call), ctypes.c_double()
        head = (bound.x.data_ptr(), *self._head(bound))
        self._run(call, head, bound, self.runner(torch.get_num_threads()), ctypes.byref(seconds), name="time_qmatmul")
        return seconds.value, bound.y.to(call.x.dtype)


def _error(status: int, message: str, where: str) -> CompressError:
    if status == cpu_abi.INVALID:
        return FormatError(message, where=where)
    if status == cpu_abi.NO_MEMORY:
        return MemoryBudgetError(message or "out of memory", where=where, hint="use smaller batches")
    return RefusedValues(message, where=where, hint="COMPRESS_KERNEL=reference computes it")


@functools.cache
def _loaded() -> Library | str:
    """The library, or why there is none."""
    if not PATH.is_file():
        return f"{PATH} does not exist: it was not built"
    try:
        return Library(PATH)
    except (OSError, AttributeError, RunError) as error:
        return str(error)


def library() -> Library | None:
    """The kernel library, None where there is none (`reason()` says why)."""
    found = _loaded()
    return found if isinstance(found, Library) else None


def reason() -> str:
    """Why there is no kernel library; empty when there is one."""
    found = _loaded()
    return found if isinstance(found, str) else ""


def required() -> bool:
    """Whether COMPRESS_REQUIRE_KERNELS makes a missing library an error."""
    return os.environ.get(REQUIRE, "").lower() not in ("", "0", "n", "no", "off", "f", "false")


def the_library() -> Library:
    """The kernel library; RunError where there is none."""
    found = library()
    if found is None:
        raise RunError(f"no CPU kernels: {reason()}", hint=_REBUILD)
    return found


def announcement() -> str:
    """What to tell users of an installation without kernels; empty when there are some."""
    return "" if library() else f"no CPU kernels, low-bit layers run in PyTorch, slower: {reason()} ({_REBUILD})"


@functools.cache
def announce() -> None:
    """Logs the announcement, if there is one, once. RunError instead when kernels are required."""
    if required():
        the_library()
    elif text := announcement():
        _LOG.warning(text)


def peak_gops(threads: int, seconds: float = 0.2) -> float | None:
    """Billions of operations a second (2 a multiply-add) of byte products in registers alone: the limit of this CPU.

    None without the library, or without an instruction set that has such products.
    """
    found = library()
    return None if found is None else float(found.functions.compress_peak_gops(threads, seconds)) or None
