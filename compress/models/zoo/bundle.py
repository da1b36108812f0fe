"""Writes a trained model as a pipeline folder in diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PIPELINE_CLASS = "ClassConditionalPixelPipeline"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def write_bundled_model(model: Any, folder: Path, scheduler_config: Mapping[str, Any]) -> Path:
    """Pipeline folder of `model` (a DiT or UNet2DModel of diffusers) with fp16 weights; returns `folder`.

    Layout: model_index.json, scheduler/scheduler_config.json (DDIM), transformer|unet/{config.json, *.safetensors}.
    A UNet2DModel with class embeddings is taken to keep its null class in the last row of the table, as a DiT does; one
    without becomes a `DDIMPipeline`.
    """
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    component = "unet" if hasattr(model, "down_blocks") else "transformer"
    diffusers.DDIMScheduler.from_config(dict(scheduler_config)).save_pretrained(folder / "scheduler")
    model.save_config(folder / component)
    write_weights(model, folder / component / WEIGHTS_NAME, torch.float16)
    null = null_class(model)
    index = {
        "_class_name": "DDIMPipeline" if null is None else PIPELINE_CLASS,
        "_diffusers_version": diffusers.__version__,
        component: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if null is not None:
        index["null_class"] = null
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
    return folder


def null_class(model: Any) -> int | None:
    """Row of the class table that means "no class", or None for a model without classes."""
    classes: int | None = model.config.get("num_embeds_ada_norm")
    if classes is not None:
        return classes
    rows: int | None = model.config.get("num_class_embeds")
    return None if rows is None else rows - 1


def write_weights(model: torch.nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write every tensor of `model` as its own copy in `dtype` (integers keep theirs).

    Modules shared in memory (`share_embedder`) become identical copies under each of their names: safetensors refuses
    aliases, and a model built from its config does not share.
    """
    from safetensors.torch import save_file

    state = model.state_dict()
    tensors = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for name, tensor in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
