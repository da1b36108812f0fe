"""`zoo://digits-dit`: a class-conditional DiT on 16x16 MNIST digits, in diffusers' own classes."""

from __future__ import annotations

from typing import Any

import torch

IMAGE_SIZE = 16
CLASSES = 10
NULL_CLASS = CLASSES  # the extra row of the label table: no condition

MODEL_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "num_layers": 8,
    "sample_size": IMAGE_SIZE,
    "patch_size": 2,  # 64 tokens
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": CLASSES,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
# `leading` spacing keeps the sampler away from t = 999, where the cosine schedule's signal vanishes and sigma explodes.
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,  # clipping the image but not the noise beside it spoils guided sampling (docs/decisions.md)
    "timestep_spacing": "leading",
}


def share_embedder(model: Any) -> Any:
    """Make every block use block 0's timestep/label embedder, and return it.

    diffusers' DiT owns an embedder per block and its output head reads block 0's. Converted DiT-XL/2 holds identical
    copies; sharing during training and saving copies gives the same file.
    """
    embedder = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = embedder
    return embedder


def build(seed: int) -> Any:
    """An untrained `DiTTransformer2DModel` with adaLN-zero initialisation (Peebles and Xie 2023, section 3.2)."""
    from diffusers import DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiTTransformer2DModel(**MODEL_CONFIG)
    embedder = share_embedder(model)
    # Dropping labels is the training loop's work, once per image: the embedder would draw anew in every block.
    embedder.class_embedder.dropout_prob = 0.0
    torch.nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02, generator=_generator(seed))
    for layer in [*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
