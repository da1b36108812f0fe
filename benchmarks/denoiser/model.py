"""A denoiser of DiT-XL/2's size with random weights: enough to measure speed, size and memory, not quality.

Configuration: Peebles and Xie 2023, table 1 (28 blocks, 16 heads of 72, patches of 2 on 32x32x4 latents: 256 tokens;
the output has learned variances). As in converted checkpoints every block holds the same timestep and label embedder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.formats import WeightSpec, quantize_weight
from compress.models.adapter import Adapter, Role
from compress.models.source import open_adapter, resolve
from compress.quantize.modules import swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec

TOKENS = 256
ALL_BLOCKS = 28
_CONFIG: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
_EIGHT_BITS = LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "dynamic"))
_KEPT_AT_EIGHT = (Role.IN_PROJECTION, Role.OUT_PROJECTION)
LAYERS_TEXT = (
    "Every linear layer, modulations included, has 4-bit weights; the first and the last layer have 8 bits. "
    "Activations are int8 per token, label embeddings stay float32."
)


class Denoiser(NamedTuple):
    """A model in eval mode and the adapter that knows how to call it."""

    adapter: Adapter
    model: nn.Module


def adapter_of(folder: Path, blocks: int) -> Adapter:
    """The adapter of the configuration, which is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _CONFIG | {"_class_name": "DiTTransformer2DModel", "num_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return open_adapter(resolve(str(folder)))


def build(folder: Path, blocks: int, seed: int) -> Denoiser:
    """The float32 model; equal arguments, equal weights."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    model: Any = DiTTransformer2DModel(**_CONFIG, num_layers=blocks).eval().requires_grad_(False)
    shared = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(shared)
    return Denoiser(adapter_of(folder, blocks), model)


def quantize(denoiser: Denoiser, weights: WeightSpec, mode: str) -> Denoiser:
    """The model with packed layers, rounded to nearest; the given one is used up."""
    adapter, model = denoiser
    four = LayerSpec(weights, ActivationSpec("int8", "dynamic"), mode=mode)  # type: ignore[arg-type]
    specs = {layer.name: _EIGHT_BITS if layer.role in _KEPT_AT_EIGHT else four for layer in adapter.layers(model)}
    for name, spec in specs.items():  # one after the other, so that two copies of the model never exist
        layer: Any = model.get_submodule(name)
        swap_layers(model, {name: spec}, "cpu")
        twin: Any = model.get_submodule(name)
        twin.fill(quantize_weight(layer.weight, spec.weights), None if layer.bias is None else layer.bias.detach())
    return Denoiser(adapter, model.eval())


def inputs(adapter: Adapter, batch: int, seed: int) -> dict[str, Tensor]:
    """One call's inputs by the names of the exported file; the timestep is a float."""
    given = adapter.example_inputs(batch, seed=seed)
    return {"sample": given.sample, "timestep": given.timestep.float(), **given.condition}


def macs(adapter: Adapter, batch: int) -> int:
    """Multiply-accumulates of all linear and convolution layers in one call (attention's products not included)."""
    model, total = adapter.skeleton(), 0

    def count(layer: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal total
        weight: Any = layer.weight
        total += output.numel() * weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(count)
    meta = {name: value.to("meta") for name, value in inputs(adapter, batch, 0).items()}
    adapter.denoise(model, meta.pop("sample"), meta.pop("timestep"), meta)
    return total


def parameters(adapter: Adapter) -> int:
    """Weights of the model."""
    return sum(parameter.numel() for parameter in adapter.skeleton().parameters())
