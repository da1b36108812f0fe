from __future__ import annotations

import pytest
import torch

from compress.errors import InputError
from compress.evaluate.denoising import denoising_loss_increase, denoising_losses, noisy_images
from compress.models.noise import NoiseSchedule

CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
}


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config(CONFIG)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(5))


def test_noise_is_added_as_diffusers_adds_it(schedule: NoiseSchedule, images: torch.Tensor) -> None:
    from diffusers import DDIMScheduler

    pairs = noisy_images(images, schedule, 40, seed=3)
    scheduler = DDIMScheduler.from_config({k: v for k, v in CONFIG.items() if k != "_class_name"})
    expected = scheduler.add_noise(images[pairs.image], pairs.noise, pairs.t.long())
    torch.testing.assert_close(pairs.sample, expected, rtol=1e-4, atol=1e-5)


def test_timesteps_are_spread_and_shared_evenly(schedule: NoiseSchedule, images: torch.Tensor) -> None:
    pairs = noisy_images(images, schedule, 40, seed=3)
    assert torch.equal(pairs.image.bincount(), torch.full((4,), 10))
    assert torch.equal((pairs.t / 25).floor(), torch.arange(40.0))  # one in each fortieth of the thousand
    halves = torch.stack([pairs.t[pairs.image == i].mean() for i in range(4)])
    assert (halves - 500).abs().max() < 60  # no image gets the easy timesteps
    assert not torch.equal(pairs.t, noisy_images(images, schedule, 40, seed=4).t)
    assert torch.equal(pairs.sample, noisy_images(images, schedule, 40, seed=3).sample)


def test_losses_and_their_increase(schedule: NoiseSchedule, images: torch.Tensor) -> None:
    pairs = noisy_images(images, schedule, 8, seed=0)
    assert torch.equal(denoising_losses(pairs, pairs.noise), torch.zeros(8, dtype=torch.float64))
    worse = denoising_losses(pairs, pairs.noise + 0.5)
    torch.testing.assert_close(worse, torch.full((8,), 0.25, dtype=torch.float64))
    increase = denoising_loss_increase(torch.zeros(8), worse, seed=0)
    assert increase.mean == pytest.approx(0.25)
    assert increase.low == pytest.approx(0.25)


def test_uneven_shares_are_refused(schedule: NoiseSchedule, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="shared equally"):
        noisy_images(images, schedule, 41, seed=0)
