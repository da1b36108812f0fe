"""Random conditions of the right shapes for the denoiser classes of diffusers, from their configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import ModelError

# Prompt lengths of the stock pipelines: CLIP; PixArt-alpha's T5; SD3's CLIP followed by T5; Flux' T5.
CLIP_TOKENS, PIXART_TOKENS, SD3_TOKENS, FLUX_TOKENS = 77, 120, 77 + 256, 512


@dataclass(frozen=True)
class Draw:
    """Random tensors of one batch; on the meta device, their shapes only."""

    batch: int
    device: str
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `[batch, *shape]`, float32."""
        if self.device == "meta":
            return torch.empty(self.batch, *shape, device="meta")
        return torch.randn(self.batch, *shape, generator=self.generator).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform over 0 … high - 1, `[batch, *shape]`, int64."""
        if self.device == "meta":
            return torch.empty(self.batch, *shape, dtype=torch.int64, device="meta")
        return torch.randint(high, (self.batch, *shape), generator=self.generator).to(self.device)


Maker = Callable[[Mapping[str, Any], Draw], dict[str, Tensor]]


def example_condition(class_name: str, config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    """Condition of one call of the class.

    Raises:
        ModelError: nobody has described the inputs of this class, or of this configuration of it.
    """
    if class_name not in _MAKERS:
        raise ModelError(f"the inputs of {class_name} are not known", hint=f"known are {', '.join(sorted(_MAKERS))}")
    return _MAKERS[class_name](config, draw)


def _dit(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    return {"class_labels": draw.integers(config["num_embeds_ada_norm"])}


def _unet2d_condition(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    while isinstance(width, list | tuple):  # one per level, or one per layer of each level
        width = width[0]
    condition = {"encoder_hidden_states": draw.normal(CLIP_TOKENS, width)} | _class_labels(config, draw)
    addition = config.get("addition_embed_type")
    if addition == "text_time":
        ids = 6  # original size, crop corner, target size: Podell et al. 2023, section 2.2
        pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
        condition |= {"text_embeds": draw.normal(pooled), "time_ids": draw.integers(1024, ids).float()}
    elif addition not in (None, "text"):
        raise ModelError(f"inputs of addition_embed_type {addition!r} are not known", hint="None, text or text_time")
    return condition


def _class_labels(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    kind, rows = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind in ("projection", "simple_projection"):
        return {"class_labels": draw.normal(config["projection_class_embeddings_input_dim"])}
    if kind == "timestep":
        return {"class_labels": draw.integers(1000)}
    if kind == "identity":
        return {"class_labels": draw.normal(config.get("time_embedding_dim") or 4 * config["block_out_channels"][0])}
    return {} if rows is None else {"class_labels": draw.integers(rows)}


def _pixart(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    condition = {"encoder_hidden_states": draw.normal(PIXART_TOKENS, config["caption_channels"])}
    extra = config.get("use_additional_conditions")
    if extra or (extra is None and config["sample_size"] == 128):
        condition |= {"resolution": draw.integers(1024, 2).float(), "aspect_ratio": draw.normal(1).abs()}
    return condition


def _sd3(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": draw.normal(SD3_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": draw.normal(config["pooled_projection_dim"]),
    }


def _flux(config: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    condition = {
        "encoder_hidden_states": draw.normal(FLUX_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": draw.normal(config["pooled_projection_dim"]),
    }
    return condition | ({"guidance": draw.normal().abs()} if config.get("guidance_embeds") else {})


_MAKERS: dict[str, Maker] = {
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _unet2d_condition,
    "UNet2DModel": _class_labels,
}
