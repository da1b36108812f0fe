"""Reading a checkpoint back, as diffusers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from compress.checkpoint.assemble import MANIFEST
from compress.checkpoint.quantizer import register
from compress.errors import CheckpointError
from compress.models.source import open_adapter, resolve


def load_denoiser(checkpoint: Path, *, device: str = "cpu") -> nn.Module:
    """The denoiser of a checkpoint in float32 arithmetic, eval mode, loaded through diffusers' `from_pretrained`.

    Raises:
        CheckpointError: a tensor is missing or unexpected, or a newer version wrote it.
        ModelError: the folder is not a model.
    """
    register()
    return open_adapter(resolve(str(checkpoint))).load(device=device)


def read_manifest(component: Path) -> dict[str, Any]:
    """The manifest of a compressed component.

    Raises:
        CheckpointError: there is none, or it is not JSON.
    """
    path = component / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError("no readable manifest", where=str(path), hint="is it our checkpoint?") from error
    return manifest
