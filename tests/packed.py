"""Packed layers with every feature a layer can have, made without a method: for tests of what is stored and run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.formats import WeightSpec, quantize_weight
from compress.models.adapter import Adapter, LayerInfo, Role
from compress.quantize.job import QuantizedLayer, QuantizedPart
from compress.quantize.modules import swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec

TIMESTEPS = (50.0, 400.0, 950.0)
TIMED = ActivationSpec("int8", "static", timesteps=TIMESTEPS)
TIMED_ASYMMETRIC = ActivationSpec("int8", "static", False, TIMESTEPS)
EVERYTHING = LayerSpec(WeightSpec("int4", symmetric=False), TIMED_ASYMMETRIC, smooth=True)


def quantized_parts(weight: Tensor, spec: LayerSpec, seed: int = 0) -> tuple[QuantizedPart, ...]:
    """Parts of a layer, rounded to nearest; smoothing factors and input scales are drawn."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in spec.parts(tuple(weight.shape)):
        piece, inputs = weight.detach()[:, part.start : part.stop], {}
        if spec.activations is not None and spec.activations.mode == "static":
            count = max(1, len(spec.activations.timesteps))
            inputs["input_scale"] = 0.02 + 0.02 * torch.rand(count, generator=generator)
            if not spec.activations.symmetric:
                inputs["input_zero_point"] = torch.randint(90, 150, (count,), generator=generator).float()
        if spec.smooth:
            inputs["input_smooth"] = 0.5 + torch.rand(piece.shape[1], generator=generator)
            piece = piece / inputs["input_smooth"].reshape(1, -1, *(1 for _ in piece.shape[2:]))
        parts.append(QuantizedPart(quantize_weight(piece.contiguous(), spec.weights), inputs))
    return tuple(parts)


def spec_for(layer: LayerInfo, spec: LayerSpec) -> LayerSpec:
    """The spec with the layer's split, where it reads a concatenation."""
    return replace(spec, split=layer.split) if layer.role is Role.SKIP else spec


def quantized_layers(adapter: Adapter, spec: LayerSpec) -> dict[str, tuple[LayerSpec, QuantizedLayer]]:
    """Every layer of the adapter's model."""
    model = adapter.load()
    found = {}
    for number, layer in enumerate(adapter.layers(model)):
        own = spec_for(layer, spec)
        weight: Any = model.get_submodule(layer.name).weight
        found[layer.name] = (own, QuantizedLayer(layer.name, quantized_parts(weight, own, number)))
    return found


def packed_model(adapter: Adapter, spec: LayerSpec = EVERYTHING) -> nn.Module:
    """The adapter's model with every layer packed in that way."""
    model: Any = adapter.load()
    layers = quantized_layers(adapter, spec)
    biases = {name: model.get_submodule(name).bias for name in layers}
    swap_layers(model, {name: own for name, (own, _) in layers.items()}, "cpu")
    for name, (_, layer) in layers.items():
        model.get_submodule(name).fill_parts(layer.parts, biases[name])
    packed: nn.Module = model.eval()
    return packed
