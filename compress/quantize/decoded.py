"""Packed layers that keep their weight decoded, where the reference computes them: the same bits, in less time.

The reference decodes packed weights in every call, which takes longer than the product. For measuring many formats on
one machine; it takes four bytes a weight, so it is no way to ship a model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compress.kernels import reference
from compress.kernels.backends import Reference, select
from compress.kernels.call import ConvCall, MatmulCall
from compress.quantize.modules import QuantConv2d, QuantLinear


class DecodedLayer(nn.Module):
    """Twin of a filled packed layer; input and output as that layer's on the reference."""

    decoded: Tensor

    def __init__(self, packed: QuantLinear | QuantConv2d) -> None:
        super().__init__()
        self.packed = packed
        # Decoding reads only the facts of the weight; the input gives a call its number of positions.
        x = torch.empty(0, math.prod(packed.shape[1:]), device=packed.weight_packed.device)
        self.register_buffer("decoded", reference.weight(_matmul(packed, x)), persistent=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if isinstance(self.packed, QuantConv2d):
            return reference.conv2d(_conv2d(self.packed, x, residual), self.decoded)
        return reference.matmul(_matmul(self.packed, x, residual), self.decoded)

    @property
    def weight(self) -> Tensor:
        """The decoded weight; diffusers asks layers for `.weight.dtype`."""
        return self.decoded

    @property
    def channels(self) -> int:
        """Input channels, which split layers ask for."""
        return self.packed.channels


def decode_layers(model: nn.Module) -> nn.Module:
    """Replace the packed layers of `model` that no faster backend takes by decoded twins, in place; returns `model`.

    The model's outputs stay the same to the bit. A model that is itself a packed layer is replaced by what is returned.
    """
    twins: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, QuantLinear | QuantConv2d) and _on_reference(module):
            if module not in twins:
                twins[module] = DecodedLayer(module)
            if not name:
                return twins[module]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, twins[module])
    return model


def _on_reference(packed: QuantLinear | QuantConv2d) -> bool:
    device = packed.weight_packed.device
    if isinstance(packed, QuantConv2d):
        call: MatmulCall = _conv2d(packed, torch.empty(0, packed.channels, 1, 1, device=device))
    else:
        call = _matmul(packed, torch.empty(0, packed.channels, device=device))
    return isinstance(select(call.name, call.facts()), Reference)


def _matmul(packed: QuantLinear | QuantConv2d, x: Tensor, residual: Tensor | None = None) -> MatmulCall:
    arguments = packed.operator_arguments(x if len(x) else None) | {"residual": residual}
    return MatmulCall(x, packed.weight_packed, packed.weight_scale, **arguments)


def _conv2d(packed: QuantConv2d, x: Tensor, residual: Tensor | None = None) -> ConvCall:
    arguments = packed.operator_arguments(x if len(x) else None) | packed.geometry | {"residual": residual}
    return ConvCall(x, packed.weight_packed, packed.weight_scale, **arguments)
