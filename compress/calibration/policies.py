"""Timestep policies: which model calls of a sample are stored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from compress.config import Config
from compress.errors import RecipeError


class UniformTimesteps(Config):
    """Calls at even intervals of the sampling run (Li et al. 2023, Q-Diffusion, uniform timestep sampling).

    Their script takes every c-th call from the noisy end; here the intervals reach both ends.
    """

    kind: Literal["uniform"] = "uniform"
    count: int = Field(20, ge=1, description="Model calls stored per sample; all of them when the sampler makes fewer.")

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending call numbers, first and last among them (for `count` 1, the middle one); `seed` has no effect."""
        return _spread(range(len(call_timesteps)), self.count)


class NormalTimesteps(Config):
    """Normally distributed timesteps (Shang et al. 2023, Post-training Quantization on Diffusion Models, "NDTC").

    t ~ N(mean * T, std * T), rounded down and clamped to [0, T]. The paper writes N(mu, T/2) with mu <= T/2, its text
    calls the deviation sqrt(T/2), and its released script uses 0.4 T for both, which are the defaults here. Small t is
    the clean end. The script feeds that t to inputs of T - t; here sample and timestep belong together.
    `samples: 1024` with `count: 1` is the calibration set of the paper.
    """

    kind: Literal["normal"] = "normal"
    mean: float = Field(0.4, ge=0, le=1, description="Mean timestep as a fraction of the training timesteps.")
    std: float = Field(0.4, ge=0, le=10, description="Standard deviation as a fraction of the training timesteps.")
    count: int = Field(20, ge=1, description="Timesteps drawn per sample, with repetition.")

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending numbers of the calls nearest to `count` draws; one drawn k times appears, and weighs, k times."""
        noise = torch.randn(self.count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn = (train_timesteps * (self.mean + self.std * noise)).floor().clamp(0, train_timesteps)
        calls = torch.tensor(call_timesteps, dtype=torch.float64)
        nearest: list[int] = (drawn[:, None] - calls).abs().argmin(dim=1).tolist()
        return sorted(nearest)


class AllTimesteps(Config):
    """Every model call."""

    kind: Literal["all"] = "all"

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Every call number; the other arguments have no effect."""
        return list(range(len(call_timesteps)))


class BandTimesteps(Config):
    """The same number of calls from every band of noise levels."""

    kind: Literal["bands"] = "bands"
    edges: tuple[float, ...] = Field(
        min_length=1, description="Ascending noise levels (sigma) between the bands; k edges make k + 1 bands."
    )
    count: int = Field(4, ge=1, description="Model calls stored per band and sample; all of them when there are fewer.")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.edges[0] <= 0 or any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"edges {list(self.edges)} must be positive noise levels in ascending order")
        return self

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending call numbers; band i holds edges[i-1] <= sigma < edges[i]. `seed` has no effect.

        Raises:
            RecipeError: the sampler visits a band not once.
        """
        bounds = (0.0, *self.edges, float("inf"))
        chosen: list[int] = []
        for low, high in pairwise(bounds):
            band = [i for i, sigma in enumerate(sigmas) if low <= sigma and (sigma < high or high == float("inf"))]
            if not band:
                raise RecipeError(
                    f"no model call of the sampler has a noise level in [{low:g}, {high:g})",
                    hint=f"its levels run from {max(sigmas):g} to {min(sigmas):g}: move `edges` or take more steps",
                )
            chosen += _spread(band, self.count)
        return sorted(chosen)


TimestepPolicy = Annotated[
    UniformTimesteps | NormalTimesteps | AllTimesteps | BandTimesteps, Field(discriminator="kind")
]


def _spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items at even intervals, both ends among them; all when there are not more."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
