"""Inception Fréchet distance through torchmetrics, with weights that the user has on disk.

Nothing here downloads: a path that does not exist is an error. torchmetrics' LPIPS is left out because its backbone
can only come from torchvision's downloader; its CLIP score, because it fails with transformers 5 (see clip_score.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import InputError
from compress.evaluate.finite import require_finite, require_finite_items
from compress.evaluate.optional import require_package, rgb_bytes
from compress.report.model import Artefact, Metric

_BATCH = 32


class _Features(nn.Module):
    """A TorchScript feature extractor as torchmetrics wants it: uint8 images in, `[n, d]` out."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script
        names = [argument.name for argument in script.forward.schema.arguments]
        # The widely used Inception file answers with class probabilities unless it is asked for features.
        self.options = {"return_features": True} if "return_features" in names else {}

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.script(images, **self.options)
        return features.flatten(1)


def inception_distance(
    images: Tensor, real_images: Tensor, weights: Path, *, artefact: Artefact, seed: int | None = None
) -> Metric:
    """`frechet_distance` (features = weights file name) between generated and real images `[n, c, h, w]` in [-1, 1].

    Args:
        weights: a TorchScript file that maps uint8 RGB images `[n, 3, h, w]` to features; it is run, so trust it.

    Raises:
        InputError: the file or torchmetrics is missing, or the file is no TorchScript module.
    """
    require_package("torchmetrics", "metrics")
    if not weights.is_file():
        raise InputError(f"no such file: {weights}", hint="give a TorchScript Inception file; nothing is downloaded")
    require_finite_items(images, "images")
    from torchmetrics.image.fid import FrechetInceptionDistance

    load: Any = torch.jit.load
    try:
        extractor = _Features(load(weights, map_location="cpu"))
    except RuntimeError as error:
        raise InputError("is no TorchScript module", where=str(weights), hint="save one with torch.jit.save") from error
    size = tuple(rgb_bytes(images[:1]).shape[1:])
    metric = FrechetInceptionDistance(feature=extractor, input_img_size=size)
    with torch.inference_mode():
        for batch, real in ((real_images, True), (images, False)):
            for part in torch.split(batch, _BATCH):
                metric.update(rgb_bytes(part), real=real)
        value = require_finite(float(metric.compute()), "the Inception Fréchet distance")
    labels = {"features": weights.name}
    return Metric(name="frechet_distance", value=value, n=len(images), seed=seed, artefact=artefact, labels=labels)
