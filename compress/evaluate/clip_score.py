"""CLIP score: how well images fit the prompts they were made from, by a CLIP model that the user has on disk.

torchmetrics 1.9 has this metric but fails with transformers 5; the few lines it takes are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.bootstrap import mean_ci95
from compress.evaluate.finite import require_finite_items
from compress.evaluate.optional import require_package, rgb_bytes
from compress.report.model import Artefact, Metric

_BATCH = 16


def clip_score(images: Tensor, prompts: Sequence[str], folder: Path, *, artefact: Artefact, seed: int = 0) -> Metric:
    """`clip_score`: mean over pairs of max(0, 100 cosine) (Hessel et al. 2021, with torchmetrics' weight of 100).

    Prompts longer than the model's context are cut.

    Args:
        images: `[n, c, h, w]` in [-1, 1], one channel or three.
        folder: a CLIP model and its processor as transformers' `save_pretrained` writes them; nothing is downloaded.

    Raises:
        InputError: the folder or transformers is missing, or counts differ.
        RunError: an image holds NaN or infinity.
    """
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} images came with {len(prompts)} prompts")
    if not (folder / "config.json").is_file():
        raise InputError(f"no CLIP model in {folder}", hint="give a folder with config.json; nothing is downloaded")
    require_package("transformers", "text")
    require_finite_items(images, "images")
    transformers: Any = import_module("transformers")
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    starts = range(0, len(prompts), _BATCH)
    parts = [_cosines(model, processor, images[i : i + _BATCH], prompts[i : i + _BATCH]) for i in starts]
    interval = mean_ci95((100 * torch.cat(parts)).clamp_min(0), seed)
    return Metric(
        name="clip_score", value=interval.mean, n=len(images), seed=seed, spread=interval.spread(), artefact=artefact
    )


def _cosines(model: Any, processor: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine of each image with its prompt, `[n]`."""
    pictures = [picture.numpy() for picture in rgb_bytes(images).permute(0, 2, 3, 1)]  # h w 3, unmistakably
    context = model.config.text_config.max_position_embeddings
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": context}
    inputs = processor(text=list(prompts), images=pictures, **options)
    with torch.inference_mode():
        output = model(**inputs)
    return torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
