"""MNIST as the bundled models see it: 16x16 pixels, one channel, values in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.errors import InputError

MNIST_ID = "ylecun/mnist"
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


class Split(NamedTuple):
    """Images `[n, 1, 16, 16]` float32 in [-1, 1] and labels `[n]` int64."""

    images: Tensor
    labels: Tensor


def to_model_pixels(images: Tensor) -> Tensor:
    """Model input `[n, 1, 16, 16]` in [-1, 1] from uint8 digits `[n, 28, 28]`.

    Two black pixels on every side make 32x32, of which each 2x2 block is averaged: no interpolation filter to choose.
    """
    padded = torch.nn.functional.pad(images.float()[:, None] / 255, (2, 2, 2, 2))
    return torch.nn.functional.avg_pool2d(padded, 2) * 2 - 1


def load_digits(source: str, split: str) -> Split:
    """The `train` or `test` split from an `.npz` (x_train, y_train, x_test, y_test) or a `datasets` id.

    Raises:
        InputError: the file is missing or lacks one of the four arrays.
    """
    if source.endswith(".npz"):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"no such file: {path}", hint=f"give an .npz with {', '.join(_NPZ_KEYS)} or `{MNIST_ID}`")
        with np.load(path) as arrays:
            missing = [key for key in _NPZ_KEYS if key not in arrays]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}", hint=f"expected {', '.join(_NPZ_KEYS)}")
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    else:
        from datasets import load_dataset

        rows = load_dataset(source, split=split)
        images = np.stack([np.asarray(image) for image in rows["image"]])
        labels = np.asarray(rows["label"])
    return Split(to_model_pixels(torch.from_numpy(images)), torch.from_numpy(labels).long())
