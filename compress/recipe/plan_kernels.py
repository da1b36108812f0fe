"""Which backend computes each quantized layer of a plan, from its shapes and formats alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from compress.kernels.backends import ENVIRONMENT, Cpu, explain, kernels_in_use
from compress.kernels.call import ConvCall, MatmulCall
from compress.quantize.modules import QuantConv2d, QuantLinear, SplitLayer


class LayerKernel(NamedTuple):
    """The backend of one layer on this CPU, and why the fastest one does not take it; empty when it does."""

    backend: str
    refusal: str


def layer_kernels(skeleton: nn.Module) -> dict[str, LayerKernel]:
    """The backend of every packed layer of a model on the meta device, by name; `cpu + reference` for unlike parts.

    Raises:
        InputError: COMPRESS_KERNEL names no backend.
    """
    found: dict[str, LayerKernel] = {}
    parts: set[nn.Module] = set()
    for name, layer in skeleton.named_modules():
        if isinstance(layer, SplitLayer):
            operators = [part for part in layer.children() if isinstance(part, QuantLinear | QuantConv2d)]
            parts.update(operators)
            found[name] = _joined([_kernel(_call(part)) for part in operators])
        elif isinstance(layer, QuantLinear | QuantConv2d) and layer not in parts:
            found[name] = _kernel(_call(layer))
    return found


def _joined(kernels: list[LayerKernel]) -> LayerKernel:
    """What is said of a layer of several operators."""
    backends = dict.fromkeys(kernel.backend for kernel in kernels)
    reasons = dict.fromkeys(kernel.refusal for kernel in kernels if kernel.refusal)
    return LayerKernel(" + ".join(backends), "; ".join(reasons))


def _call(layer: QuantLinear | QuantConv2d) -> MatmulCall:
    """A call with an input of the smallest size: facts do not depend on it."""
    arguments = {"codes": layer.weight_packed, "scales": layer.weight_scale, **layer.operator_arguments()}
    if isinstance(layer, QuantConv2d):
        x = torch.empty(1, layer.channels, *layer.shape[2:], device="meta")
        return ConvCall(x, **arguments, **layer.geometry)
    return MatmulCall(torch.empty(1, layer.channels, device="meta"), **arguments)


def _kernel(call: MatmulCall) -> LayerKernel:
    said = explain(call.name, replace(call.facts(), device="cpu"))
    chosen = next(name for name, support in said.items() if support.ok)
    return LayerKernel(chosen, next(iter(said.values())).reason)


def summarize(kernels: Iterable[LayerKernel]) -> str:
    """`75 layers cpu (avx512vnni), 2 reference (activations are floating point)`; empty without layers."""
    counts = Counter(kernels).most_common()
    word = {number: " layer" if count == 1 else " layers" for number, (_, count) in enumerate(counts[:1])}
    return ", ".join(
        f"{count}{word.get(number, '')} {kernel.backend} ({_reason(kernel)})"
        for number, (kernel, count) in enumerate(counts)
    )


def _reason(kernel: LayerKernel) -> str:
    if kernel.refusal:
        return kernel.refusal
    return kernels_in_use() if kernel.backend == Cpu.name else f"{ENVIRONMENT}={os.environ.get(ENVIRONMENT, '')}"
