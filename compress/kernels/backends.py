"""Who computes an operator: ordered backends, fastest first, the reference last, so selection never fails."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from torch import Tensor

from compress.errors import InputError
from compress.kernels import reference, torch_int8
from compress.kernels.call import ConvCall, Facts, MatmulCall

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

    def __call__(self, call: MatmulCall) -> Tensor:
        """The operator's result, for a call whose facts it supports; checks the arguments as the reference does."""


class Reference:
    """Plain PyTorch (`reference.py`): everything, on every device."""

    name = "reference"

    def supports(self, op_name: str, facts: Facts) -> Support:
        """Always."""
        return Support(True)

    def __call__(self, call: MatmulCall) -> Tensor:
        """The normative result."""
        return reference.conv2d(call) if isinstance(call, ConvCall) else reference.matmul(call)


class TorchInt8:
    """Integer matmuls in PyTorch (`torch_int8.py`): integer activations times integer or folded weights, on CPUs."""

    name = "torch_int8"

    def supports(self, op_name: str, facts: Facts) -> Support:
        """Whether codes of both operands fit int8 and the scales allow whole integer dot products."""
        reason = torch_int8.refusal(op_name, facts)
        return Support(not reason, reason)

    def __call__(self, call: MatmulCall) -> Tensor:
        """The reference's result up to the order of float32 additions."""
        return torch_int8.matmul(call)


BACKENDS: tuple[Backend, ...] = (TorchInt8(), Reference())


def select(op_name: str, facts: Facts) -> Backend:
    """The first backend that supports the layer.

    The environment variable COMPRESS_KERNEL names one backend to use where it can be used, and the reference elsewhere;
    `COMPRESS_KERNEL=reference` forces the reference. InputError when it names no backend.
    """
    return next(backend for backend in _candidates() if backend.supports(op_name, facts).ok)


def explain(op_name: str, facts: Facts) -> dict[str, Support]:
    """What each backend says to the layer, in order, by name: the plan's answer to "why is this layer slow?"."""
    return {backend.name: backend.supports(op_name, facts) for backend in _candidates()}


def _candidates() -> tuple[Backend, ...]:
    forced = os.environ.get(ENVIRONMENT)
    if not forced:
        return BACKENDS
    chosen = [backend for backend in BACKENDS if backend.name == forced]
    if not chosen:
        names = ", ".join(backend.name for backend in BACKENDS)
        raise InputError(f"{ENVIRONMENT}={forced} names no kernel backend", hint=f"backends: {names}")
    return chosen[0], BACKENDS[-1]
