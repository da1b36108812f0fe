"""Pixel and latent U-Nets with classes or no condition (Ho et al. 2020, Song et al. 2021), diffusers' `UNet2DModel`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, ClassVar

from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.adapter import Condition, LayerInfo, Role
from compress.models.generic import GenericAdapter
from compress.models.roles import unet_levels

Units = list[tuple[str, nn.Module]]


class UNet2DAdapter(GenericAdapter):
    """Blocks are residual blocks and attention blocks, the units of BRECQ and Q-Diffusion (Li et al. 2021, 2023).

    Input and output convolution, the convolutions of resamplers and the time embedding lie in no block; a resampler
    that is a residual block itself is one.
    """

    family = "unet2d"
    # Modulation: the group norms of diffusers' k-diffusion levels, which scale by the timestep.
    conditioning_roles: ClassVar[frozenset[Role]] = frozenset(
        {Role.TIME_EMBEDDING, Role.CLASS_EMBEDDING, Role.MODULATION}
    )

    def blocks(self, model: nn.Module) -> Units:
        """Residual and attention blocks in the order of computation: `down_blocks.0.resnets.0`, …"""
        return [
            (f"{level_name}.{name}", unit)
            for level_name, level in unet_levels(model)
            for name, unit in _units(level, middle=level_name == "mid_block")
        ]

    def conditioning_layers(self, model: nn.Module) -> list[LayerInfo]:
        """Time embedding, class embedding and every residual block's `time_emb_proj`, in the order of computation."""
        order = {name: i for i, (name, _) in enumerate(self.blocks(model))}
        layers = super().conditioning_layers(model)
        return sorted(layers, key=lambda layer: -1 if layer.block is None else order[layer.block])

    def conditioning(self, model: Any, timestep: Tensor, condition: Condition) -> Tensor:
        """Time embedding plus class embedding `[b, c]` for `timestep` `[b]`; residual blocks project its activation.

        A class is a row of a table; with `class_embed_type` timestep it is embedded as a second time, with identity it
        is added as it is. Nothing is scaled.

        Raises:
            ModelError: class labels are missing, or the model has no use for them.
        """
        labels = self._keywords(condition).get("class_labels")
        if (labels is None) != (model.class_embedding is None):
            verb = "needs" if labels is None else "takes no"
            raise ModelError(f"{self.source.denoiser_class} of this configuration {verb} class_labels")
        embedding: Tensor = model.time_embedding(model.time_proj(timestep).to(model.dtype))
        if labels is None:
            return embedding
        if self.config["class_embed_type"] == "timestep":
            labels = model.time_proj(labels)
        class_embedding: Tensor = model.class_embedding(labels).to(model.dtype)
        return embedding + class_embedding

    def class_condition(self, labels: Tensor) -> dict[str, Tensor]:
        """Condition for class labels `[b]`; empty for an unconditional model.

        Raises:
            ModelError: the model's `class_embed_type` is timestep or identity.
        """
        kind = self.config["class_embed_type"]
        if kind in ("timestep", "identity"):
            takes = "a second time" if kind == "timestep" else "embedding vectors"
            raise ModelError(
                f"UNet2DModel with class_embed_type {kind!r} takes {takes}, not class labels",
                hint="choose a model with a class table (num_class_embeds) or an unconditional one",
            )
        return {} if self.class_count() is None else {"class_labels": labels}


def _units(level: nn.Module, *, middle: bool) -> Units:
    """Residual and attention blocks of one level, in the order in which its forward calls them."""
    resnets, attentions = _members(level, "resnets"), _members(level, "attentions")
    if middle:
        units = resnets[:1] + _alternate(attentions, resnets[1:])
    elif len(attentions) == len(resnets):
        units = _alternate(resnets, attentions)
    else:
        units = resnets + attentions  # none, or the single one that ends an AttnSkipUpBlock2D
    resamplers = _members(level, "downsamplers") + _members(level, "upsamplers")
    resamplers += [(name, child) for name, child in level.named_children() if name in ("resnet_down", "resnet_up")]
    return units + [(name, module) for name, module in resamplers if hasattr(module, "conv1")]


def _members(level: nn.Module, name: str) -> Units:
    modules = getattr(level, name, None)
    return [(f"{name}.{i}", m) for i, m in modules.named_children()] if isinstance(modules, nn.ModuleList) else []


def _alternate(first: Sequence[tuple[str, nn.Module]], second: Sequence[tuple[str, nn.Module]]) -> Units:
    pairs = zip_longest(first, second)
    return [unit for unit in chain.from_iterable(pairs) if unit is not None]
