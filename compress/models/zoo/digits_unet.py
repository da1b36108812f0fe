"""`zoo://digits-unet`: a class-conditional U-Net on 16x16 MNIST digits, in diffusers' own class.

The pixel-space U-Net of Ho et al. 2020 (appendix B) in small: two residual blocks a resolution, attention at the lower
two, skip concatenations that enter residual blocks with a 1x1 `conv_shortcut`, noise prediction under the linear
schedule. The class joins the timestep by addition (diffusers' `num_class_embeds`).
"""

from __future__ import annotations

from typing import Any

import torch

IMAGE_SIZE = 16
CLASSES = 10
NULL_CLASS = CLASSES  # the extra row of the label table: no condition

MODEL_CONFIG: dict[str, Any] = {
    "sample_size": IMAGE_SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 32,
    "num_class_embeds": CLASSES + 1,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": False,  # as digits-dit: guided samples must not be clipped (docs/decisions.md)
    "timestep_spacing": "leading",
}


def build(seed: int) -> Any:
    """An untrained `UNet2DModel` with diffusers' own initialisation."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**MODEL_CONFIG)
