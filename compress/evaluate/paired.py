"""PSNR and SSIM of images sampled from the same noise by the full-precision and by the compressed model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from compress.errors import InputError
from compress.evaluate.bootstrap import mean_ci95
from compress.evaluate.finite import require_finite_items
from compress.report.model import Artefact, Metric

DATA_RANGE = 2.0  # images are in [-1, 1]
MAX_PSNR = 200.0
"""dB given to identical images, whose PSNR is infinite; one rounding of one bright float32 pixel in 16x16 is 174 dB."""

_POOLED = {"of": "mean_mse"}
WINDOW, _SIGMA = 11, 1.5
_CHUNK = 16  # images in float64 at a time
_C1, _C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def psnr_per_image(reference: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[n]` in dB, at most MAX_PSNR, of images `[n, c, h, w]` clamped to [-1, 1]."""
    return _decibel(_mse_per_image(reference, images))


def psnr(reference: Tensor, images: Tensor, *, artefact: Artefact, seed: int = 0) -> list[Metric]:
    """Two metrics: the mean of the images' PSNR (no labels) and the PSNR of their mean error (of = mean_mse).

    The first weighs every image alike; the second is what an image of the average squared error would have, hence
    lower, and is not moved by near-identical pairs.
    """
    mse = _mse_per_image(reference, images)
    main = _metric("psnr", "dB", _decibel(mse), artefact, seed)
    return [main, main.model_copy(update={"value": float(_decibel(mse.mean())), "spread": {}, "labels": _POOLED})]


def ssim_per_image(reference: Tensor, images: Tensor) -> Tensor:
    """Structural similarity `[n]` (Wang et al. 2004, equation 13) of images `[n, c, h, w]` clamped to [-1, 1].

    Gaussian window 11x11 of sigma 1.5, K1 = 0.01, K2 = 0.03, only where the window fits inside the image, as in the
    authors' code; channels are averaged. Computed in float64.

    Raises:
        InputError: the images are smaller than the window, or differ in shape.
        RunError: an image holds NaN or infinity.
    """
    _check(reference, images)
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW:
        raise InputError(
            f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {height}x{width}", hint="use PSNR"
        )
    return torch.cat([_ssim_chunk(x, y) for x, y in _chunks(reference, images)])


def ssim(reference: Tensor, images: Tensor, *, artefact: Artefact, seed: int = 0) -> Metric:
    """Mean structural similarity over the pairs, 1 for identical images."""
    return _metric("ssim", "", ssim_per_image(reference, images), artefact, seed)


def _ssim_chunk(x: Tensor, y: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    stacked = torch.stack([x, y, x * x, y * y, x * y]).reshape(-1, 1, height, width)
    window = _gaussian_window()
    blurred = conv2d(conv2d(stacked, window[..., None]), window[..., None, :])
    mean_x, mean_y, square_x, square_y, product = blurred.reshape(5, n, channels, *blurred.shape[-2:])
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    similarity: Tensor = (luminance * structure).flatten(1).mean(dim=1)
    return similarity


def _gaussian_window() -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    return (weights / weights.sum())[None, None]  # 1 1 11


def _mse_per_image(reference: Tensor, images: Tensor) -> Tensor:
    _check(reference, images)
    parts = [(x - y).square().flatten(1).mean(dim=1) for x, y in _chunks(reference, images)]
    return torch.cat(parts)


def _decibel(mse: Tensor) -> Tensor:
    floor = DATA_RANGE**2 * 10 ** (-MAX_PSNR / 10)
    return (mse.clamp_min(floor) / DATA_RANGE**2).log10() * -10


def _chunks(reference: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(torch.split(reference, _CHUNK), torch.split(images, _CHUNK), strict=True):
        yield x.double().clamp(-1, 1), y.double().clamp(-1, 1)


def _check(reference: Tensor, images: Tensor) -> None:
    if reference.shape != images.shape or images.dim() != 4 or len(images) == 0:
        shapes = f"{tuple(reference.shape)} and {tuple(images.shape)}"
        raise InputError(f"paired images must be [n, c, h, w] of one shape with n >= 1, got {shapes}")
    require_finite_items(reference, "images of the reference model")
    require_finite_items(images, "images of the compressed model")


def _metric(name: str, unit: str, values: Tensor, artefact: Artefact, seed: int) -> Metric:
    interval = mean_ci95(values, seed)
    return Metric(
        name=name,
        value=interval.mean,
        unit=unit,
        n=len(values),
        seed=seed,
        spread=interval.spread() | {"std": interval.std},
        artefact=artefact,
    )
