"""Registers the operators of `schema.OPERATORS` as `torch.ops.compress.*`; importing it has that effect once.

Each call selects a backend from its facts (`backends.select`). Fake versions do size arithmetic only, so exports keep
symbolic batch sizes. The operators have no gradient: asking for one raises RunError instead of silently giving zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from compress.errors import RunError
from compress.kernels.backends import select
from compress.kernels.call import Call, ConvCall, MatmulCall
from compress.kernels.schema import DOMAIN, OPERATORS
from compress.kernels.vq_call import VqConvCall, VqMatmulCall

_Kind = Callable[..., Call]
_CALLS: Final[dict[str, _Kind]] = {call.name: call for call in (MatmulCall, ConvCall, VqMatmulCall, VqConvCall)}


def _implementation(kind: _Kind) -> Callable[..., Tensor]:
    def run(*inputs: Any, **attributes: Any) -> Tensor:
        call = kind(*inputs, **attributes)
        call.check()
        return select(call.name, call.facts())(call)

    return run


def _fake(kind: _Kind) -> Callable[..., Tensor]:
    def fake(*inputs: Any, **attributes: Any) -> Tensor:
        call = kind(*inputs, **attributes)
        return call.x.new_empty(call.output_shape)

    return fake


def _no_gradient(ctx: Any, grad: Tensor) -> NoReturn:
    raise RunError("packed weights have no gradient", hint="train before quantizing, or on dequantized weights")


def _register() -> object:
    make: Any = torch.library.Library  # torch leaves its methods without annotations
    library = make(DOMAIN, "DEF")
    for operator in OPERATORS:
        kind = _CALLS[operator.name]
        qualified = f"{DOMAIN}::{operator.name}"
        library.define(operator.torch_signature(), tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(operator.name, _implementation(kind), "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, _fake(kind), lib=library)
        torch.library.register_autograd(qualified, _no_gradient, lib=library)
    kept: object = library
    return kept


_LIBRARY: Final = _register()  # the registration lives as long as this object
