"""Arithmetic of one forward: multiply-accumulates, and bit operations, which weigh them by both operands' bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from compress.errors import InputError
from compress.report.model import Artefact, Metric

FLOAT_BITS = 32


class LayerOperations(NamedTuple):
    """A layer's multiply-accumulates of one forward and the bits of its operands; floating point counts as 32."""

    name: str
    macs: int
    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS


def total_macs(layers: Iterable[LayerOperations]) -> int:
    """Multiply-accumulates of all layers."""
    return sum(layer.macs for layer in layers)


def total_bops(layers: Iterable[LayerOperations]) -> int:
    """Bit operations, sum of macs * weight bits * activation bits (van Baalen et al. 2020, section 4.1)."""
    return sum(layer.macs * layer.weight_bits * layer.activation_bits for layer in layers)


def operation_metrics(layers: Iterable[LayerOperations], *, artefact: Artefact) -> list[Metric]:
    """`macs` and `bops` of one forward.

    Raises:
        InputError: a layer has a negative count or no bits.
    """
    layers = list(layers)
    for layer in layers:
        if layer.macs < 0 or min(layer.weight_bits, layer.activation_bits) < 1:
            raise InputError(f"impossible numbers: {layer.macs} MACs, {layer[2:]} bits", where=layer.name)
    return [
        Metric(name="macs", value=total_macs(layers), artefact=artefact),
        Metric(name="bops", value=total_bops(layers), artefact=artefact),
    ]
