"""Packages and pictures for the metrics that need more than this package brings."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from compress.errors import InputError


def require_package(package: str, extra: str) -> None:
    """Nothing if the package is installed. Raises InputError that names the extra which installs it."""
    if find_spec(package) is None:
        raise InputError(f"this metric needs {package}", hint=f"pip install 'compress[{extra}]'")


def rgb_bytes(images: Tensor) -> Tensor:
    """uint8 `[n, 3, h, w]` of images `[n, 1 or 3, h, w]` in [-1, 1]; grey becomes three equal channels."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"images must be [n, 1 or 3, h, w], got {tuple(images.shape)}")
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)
