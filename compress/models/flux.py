"""Flux: rectified-flow transformers on 2x2 patches of a 16-channel latent, diffusers' `FluxTransformer2DModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from compress.models.adapter import Condition
from compress.models.generic import GenericAdapter

PATCH = 2
NATIVE_LATENT = 128  # 1024 pixels through an autoencoder that divides by 8; the configuration has no size
TRAIN_TIMESTEPS = 1000


class FluxAdapter(GenericAdapter):
    """The model reads and writes sequences of patches; samples here are `[b, c, h, w]` as for every other family."""

    family = "flux"

    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent at 1024 pixels."""
        return int(self.config["in_channels"]) // PATCH**2, NATIVE_LATENT, NATIVE_LATENT

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Velocity `[b, c, h, w]`; `timestep` `[b]` in [0, 1000]. Position ids are made from the shapes."""
        height, width = sample.shape[-2:]
        text = condition["encoder_hidden_states"]
        output: Tensor = model(
            to_patches(sample),
            timestep=timestep / TRAIN_TIMESTEPS,  # the model multiplies by 1000 itself
            img_ids=position_ids(height // PATCH, width // PATCH, sample),
            txt_ids=torch.zeros(text.shape[1], 3, dtype=sample.dtype, device=sample.device),
            **self._keywords(condition),
            return_dict=False,
        )[0]
        return from_patches(output, height, width)


def to_patches(sample: Tensor) -> Tensor:
    """Sequence `[b, (h/2)(w/2), 4c]` of a latent `[b, c, h, w]`; a patch's values are channel-major."""
    return pixel_unshuffle(sample, PATCH).flatten(2).transpose(1, 2)


def from_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Latent `[b, c, h, w]` of a sequence of patches: the inverse of `to_patches`."""
    batch, _, values = patches.shape
    grid = patches.transpose(1, 2).reshape(batch, values, height // PATCH, width // PATCH)
    return pixel_shuffle(grid, PATCH)


def position_ids(rows: int, columns: int, like: Tensor) -> Tensor:
    """(0, row, column) of every patch in reading order, `[rows * columns, 3]`."""
    row = torch.arange(rows, device=like.device, dtype=like.dtype).repeat_interleave(columns)
    column = torch.arange(columns, device=like.device, dtype=like.dtype).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, column], dim=1)
