"""Builders of tiny models with random weights, for every test that needs a denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG

CLASSES = 10


def _seeded(cls: Any, seed: int, **config: Any) -> Any:
    """Model in eval mode; every weight and bias is drawn, norms get a spread around 1: nothing is trivially zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(**config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval().requires_grad_(False)


def tiny_dit(*, blocks: int = 2, seed: int = 0, size: int = 8, learned_sigma: bool = False) -> Any:
    """Class-conditional `DiTTransformer2DModel`: 2 heads of 8, 1 channel, `size`x`size`, 10 classes and the null class.

    Each block owns an identical copy of the timestep/label embedder, as in a converted DiT checkpoint.
    """
    from diffusers import DiTTransformer2DModel

    model = _seeded(
        DiTTransformer2DModel,
        seed,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2 if learned_sigma else None,
        num_layers=blocks,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    embedder = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    return model


def tiny_unet2d(*, seed: int = 0, size: int = 8, classes: int | None = CLASSES) -> Any:
    """`UNet2DModel` of two levels with attention and skips; unless `classes` is None, a class table with a null row."""
    from diffusers import UNet2DModel

    return _seeded(
        UNet2DModel,
        seed,
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=None if classes is None else classes + 1,
    )


def tiny_dit_pipeline(folder: Path, *, blocks: int = 2, seed: int = 0) -> Path:
    """A whole pipeline folder around `tiny_dit`, fp16 weights; returns `folder`."""
    return write_bundled_model(tiny_dit(blocks=blocks, seed=seed), Path(folder), SCHEDULER_CONFIG)


def tiny_unet2d_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """A whole pipeline folder around `tiny_unet2d`, fp16 weights; returns `folder`."""
    return write_bundled_model(tiny_unet2d(seed=seed), Path(folder), SCHEDULER_CONFIG)


DIT_XL_2_CONFIG: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def config_only_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A bare component folder that holds `config.json` and no weights; returns `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf8")
    return folder


TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    },
    "PixArtTransformer2DModel": {
        "sample_size": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "caption_channels": 12,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
    },
    "FluxTransformer2DModel": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    },
}
"""Configurations of text-conditioned families, each of which runs in well under a second."""


def tiny_model(class_name: str, *, seed: int = 0, **changes: Any) -> Any:
    """Model of `TINY_CONFIGS[class_name]`, with some settings changed."""
    import diffusers

    return _seeded(getattr(diffusers, class_name), seed, **(TINY_CONFIGS[class_name] | changes))
