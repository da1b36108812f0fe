"""The training loss of a denoiser, on noise added to given images: what compression costs by the model's own objective.

`noise_error` compares two models and is never zero, so full precision has no value of its own in it. The denoising loss
has one, with a spread over seeds, and so can tell whether a difference is noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.bootstrap import Interval, paired_difference_ci95
from compress.evaluate.noise_error import squared_errors
from compress.models.noise import NoiseSchedule


class NoisyImages(NamedTuple):
    """Inputs of a denoiser and what it should say: x_t = a_t x_0 + b_t noise."""

    sample: Tensor  # [n, c, h, w]
    t: Tensor  # [n] float32
    noise: Tensor  # [n, c, h, w]
    image: Tensor  # [n] int64: which x_0, for its condition


def noisy_images(images: Tensor, schedule: NoiseSchedule, n: int, seed: int) -> NoisyImages:
    """`n` noised copies of `images` `[m, c, h, w]`, each image equally often, timesteps spread evenly over all trained.

    The i-th copy takes a timestep drawn from the i-th of `n` equal parts of the range (stratified), in an order that
    shares all parts among the images.

    Raises:
        InputError: n is not a positive multiple of the number of images.
    """
    if len(images) == 0 or n < 1 or n % len(images):
        raise InputError(f"{n} noised copies cannot be shared equally by {len(images)} images")
    generator = torch.Generator().manual_seed(seed)
    image = torch.arange(n) % len(images)
    jitter = torch.rand(n, generator=generator, dtype=torch.float64)
    t = ((torch.arange(n) + jitter) / n * schedule.train_timesteps).floor().clamp_max(schedule.train_timesteps - 1)
    noise = torch.randn((n, *images.shape[1:]), generator=generator)
    signal, level = (scale.reshape(-1, 1, 1, 1) for scale in schedule.scales(t.float()))
    return NoisyImages(signal * images[image] + level * noise, t.float(), noise, image)


def denoising_losses(pairs: NoisyImages, eps: Tensor) -> Tensor:
    """Squared error `[n]` of predicted noise `[n, c, h, w]` against the noise added (Ho et al. 2020, eq. 14)."""
    return squared_errors(pairs.noise, eps)


def denoising_loss_increase(reference: Tensor, compressed: Tensor, seed: int) -> Interval:
    """Losses `[n]` of the compressed model minus those of the original on the same pairs, with a 95 % interval."""
    return paired_difference_ci95(compressed, reference, seed)
