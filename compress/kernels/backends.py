"""Who computes an operator: ordered backends, fastest first, the reference last, so selection never fails."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from torch import Tensor

from compress.errors import InputError
from compress.kernels import cpu_library, reference, torch_int8, vq_reference
from compress.kernels.call import Call, ConvCall, Facts, MatmulCall
from compress.kernels.vq_call import VqConvCall, VqMatmulCall

ENVIRONMENT = "COMPRESS_KERNEL"


class Support(NamedTuple):
    """Whether a backend takes a layer, and if not, why not."""

    ok: bool
    reason: str = ""


class Backend(Protocol):
    """One implementation of the operators. Equal inputs must give equal bits."""

    @property
    def name(self) -> str:
        """The name plans, reports and the COMPRESS_KERNEL variable use."""

    def supports(self, op_name: str, facts: Facts) -> Support:
        """Whether it computes that operator for a layer of those facts."""

    def __call__(self, call: Call) -> Tensor:
        """The operator's result, for a call whose facts it supports; checks the arguments as the reference does."""


class Reference:
    """Plain PyTorch (`reference.py`): everything, on every device."""

    name = "reference"

    def supports(self, op_name: str, facts: Facts) -> Support:
        """Always."""
        return Support(True)

    def __call__(self, call: Call) -> Tensor:
        """The normative result."""
        if isinstance(call, VqMatmulCall):
            return vq_reference.conv2d(call) if isinstance(call, VqConvCall) else vq_reference.matmul(call)
        assert isinstance(call, MatmulCall)
        return reference.conv2d(call) if isinstance(call, ConvCall) else reference.matmul(call)


class Cpu:
    """The C++ kernels (`cpu_library.py`): integer activations times packed weights, on CPUs."""

    name = "cpu"

    def supports(self, op_name: str, facts: Facts) -> Support:
        """What the library says, or why there is none."""
        library = cpu_library.library()
        if library is None:
            return Support(False, cpu_library.reason())
        reason = library.refusal(op_name, facts)
        return Support(not reason, reason)

    def __call__(self, call: Call) -> Tensor:
        """The reference's result up to the order of float32 additions, whatever the number of threads.

        Calls that the library refuses because of values, which facts do not tell, go to the reference.
        """
        try:
            return cpu_library.the_library().compute(call)
        except cpu_library.RefusedValues:
            return Reference()(call)


class TorchInt8:
    """Integer matmuls in PyTorch (`torch_int8.py`): integer activations times integer or folded weights, on CPUs."""

    name = "torch_int8"

    def supports(self, op_name: str, facts: Facts) -> Support:
        """Whether codes of both operands fit int8 and the scales allow whole integer dot products."""
        reason = torch_int8.refusal(op_name, facts)
        return Support(not reason, reason)

    def __call__(self, call: Call) -> Tensor:
        """The reference's result up to the order of float32 additions."""
        assert isinstance(call, MatmulCall)
        return torch_int8.matmul(call)


BACKENDS: tuple[Backend, ...] = (Cpu(), TorchInt8(), Reference())


def select(op_name: str, facts: Facts) -> Backend:
    """The first backend that supports the layer; tells once when the C++ kernels are missing.

    The environment variable COMPRESS_KERNEL names one backend to use where it can be used, and the reference elsewhere;
    `COMPRESS_KERNEL=reference` forces the reference. The name of an instruction set (`avx2`, `scalar`, …) means the
    backend `cpu` with that one. InputError when it names neither, or one that this CPU lacks.
    """
    asked = candidates()
    if asked[0].name == Cpu.name:
        cpu_library.announce()
    return next(backend for backend in asked if backend.supports(op_name, facts).ok)


def explain(op_name: str, facts: Facts) -> dict[str, Support]:
    """What each backend says to the layer, in order, by name: the plan's answer to "why is this layer slow?"."""
    return {backend.name: backend.supports(op_name, facts) for backend in candidates()}


def cpu_is_chosen() -> bool:
    """Whether the C++ kernels come first where they are installed: COMPRESS_KERNEL names no other backend."""
    return candidates()[0].name == Cpu.name


def kernels_in_use() -> str:
    """The instruction set of the C++ kernels in use, or `none` with the reason: a fact of this machine, for reports."""
    if not cpu_is_chosen():
        return f"none ({ENVIRONMENT}={os.environ[ENVIRONMENT]})"
    library = cpu_library.library()
    return f"none ({cpu_library.reason()})" if library is None else library.isa


def candidates() -> tuple[Backend, ...]:
    """The backends that are asked, in order. InputError as in `select`."""
    forced = os.environ.get(ENVIRONMENT, "")
    _force_isa(forced)
    name = Cpu.name if forced in cpu_library.ISAS else forced
    if not name:
        return BACKENDS
    chosen = [backend for backend in BACKENDS if backend.name == name]
    if not chosen:
        names = ", ".join(backend.name for backend in BACKENDS)
        library = cpu_library.library()
        isas = f"; instruction sets: {', '.join(library.isas)}" if library else ""
        raise InputError(f"{ENVIRONMENT}={forced} names no kernel backend", hint=f"backends: {names}{isas}")
    return tuple(dict.fromkeys((chosen[0], BACKENDS[-1])))


_isa_of_environment = ""  # what _force_isa did last, so that it leaves a choice made in Python alone


def _force_isa(forced: str) -> None:
    """Makes the library follow a change of the variable."""
    global _isa_of_environment
    isa = forced if forced in cpu_library.ISAS else ""
    if isa == _isa_of_environment:
        return
    library = cpu_library.library()
    if library is None:
        raise InputError(f"{ENVIRONMENT}={forced}: there are no CPU kernels", hint=cpu_library.reason())
    library.use_isa(isa or None)
    _isa_of_environment = isa
