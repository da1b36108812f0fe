"""Timestep policies: which model calls of a sample are stored, and with which timestep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from compress.config import Config
from compress.errors import RecipeError


class Policy(Config):
    """What every policy answers.

    Attributes:
        shared_draw: whether all samples have the same `seed`, so that they share what is drawn.
    """

    shared_draw: ClassVar[bool] = False

    @abstractmethod
    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending numbers of the model calls whose input is stored; a number may repeat, and weighs as often.

        Args:
            call_timesteps: timestep of every model call, in the order of sampling.
            sigmas: their noise levels.
            train_timesteps: T.
            seed: of this sample (of the trajectory, for policies with a shared draw).
        """

    def fed_timesteps(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[float]:
        """The timestep that goes with each input that `choose` names, in its order: that of the call itself."""
        return [call_timesteps[i] for i in self.choose(call_timesteps, sigmas, train_timesteps, seed)]

    def facts(self) -> dict[str, Any]:
        """The settings as far as they determine a trajectory, as JSON data."""
        return self.model_dump(mode="json")


class UniformTimesteps(Policy):
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


class NormalTimesteps(Policy):
    """Normally distributed timesteps (Shang et al. 2023, Post-training Quantization on Diffusion Models, "NDTC").

    t ~ N(mean * T, std * T), rounded down and clamped to [0, T]. The paper writes N(mu, T/2) with mu <= T/2, its text
    calls the deviation sqrt(T/2), and its released script uses 0.4 T for both, which are the defaults here. Small t is
    the clean end. `samples: 1024` with `count: 1` is the calibration set of the paper.

    The script takes t, which counts from the clean end, for the number of a sampling step, which counts from the noisy
    one. `pairing: compat` does so, too: the input of the call nearest to T - t is stored with timestep t (T - 1 for T,
    which is no timestep). Sample and timestep disagree then, also where the trajectory serves evaluation; it is there
    for comparison. Three more faults of the script have no counterpart here: it stores the sample after the step, gives
    timesteps of the respaced grid to a model that knows all T, and drops samples that do not fill a batch.
    """

    kind: Literal["normal"] = "normal"
    mean: float = Field(0.4, ge=0, le=1, description="Mean timestep as a fraction of the training timesteps.")
    std: float = Field(0.4, ge=0, le=10, description="Standard deviation as a fraction of the training timesteps.")
    count: int = Field(20, ge=1, description="Timesteps drawn per sample, with repetition.")
    pairing: Literal["paper", "compat"] = Field(
        "paper",
        description="paper: sample and timestep belong together; compat: t goes with the sample of T - t.",
    )

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending numbers of the calls nearest to `count` draws; one drawn k times appears, and weighs, k times."""
        return [call for call, _ in self._pairs(call_timesteps, train_timesteps, seed)]

    def fed_timesteps(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[float]:
        """The calls' own timesteps, or for `compat` the draws themselves; in the order of `choose`."""
        return [t for _, t in self._pairs(call_timesteps, train_timesteps, seed)]

    def facts(self) -> dict[str, Any]:
        """The settings; those of before there was `pairing` keep their hash."""
        return self.model_dump(mode="json", exclude={"pairing"} if self.pairing == "paper" else None)

    def _pairs(self, call_timesteps: Sequence[float], train_timesteps: int, seed: int) -> list[tuple[int, float]]:
        """(call, fed timestep) of every draw, ascending."""
        noise = torch.randn(self.count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn = (train_timesteps * (self.mean + self.std * noise)).floor().clamp(0, train_timesteps)
        calls = torch.tensor(call_timesteps, dtype=torch.float64)
        wanted = drawn if self.pairing == "paper" else train_timesteps - drawn
        nearest: list[int] = (wanted[:, None] - calls).abs().argmin(dim=1).tolist()
        if self.pairing == "paper":
            return [(call, call_timesteps[call]) for call in sorted(nearest)]
        return sorted(zip(nearest, drawn.clamp_max(train_timesteps - 1).tolist(), strict=True))


class RandomTimesteps(Policy):
    """A random subset of the model calls, the same for every sample; every subset of that size is equally likely.

    Per-timestep statistics need every sample at the same timesteps.
    """

    shared_draw: ClassVar[bool] = True

    kind: Literal["random"] = "random"
    count: int = Field(20, ge=1, description="Model calls stored per sample; all of them when the sampler makes fewer.")

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Ascending call numbers, none twice, drawn from `seed` alone."""
        order = torch.randperm(len(call_timesteps), generator=torch.Generator().manual_seed(seed))
        return sorted(order[: self.count].tolist())


class SingleTimestep(Policy):
    """One model call per sample, at the same noise level: what calibration from single images would amount to.

    For ablations: the distribution of activations drifts with the timestep (Shang et al. 2023).
    """

    kind: Literal["single"] = "single"
    at: float = Field(0.5, ge=0, le=1, description="Timestep as a fraction of the training timesteps; 0 is the image.")

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """The number of the call nearest to `at * T`, the noisier of two; `seed` has no effect."""
        distances = [abs(t - self.at * train_timesteps) for t in call_timesteps]
        return [distances.index(min(distances))]


class AllTimesteps(Policy):
    """Every model call."""

    kind: Literal["all"] = "all"

    def choose(
        self, call_timesteps: Sequence[float], sigmas: Sequence[float], train_timesteps: int, seed: int
    ) -> list[int]:
        """Every call number; the other arguments have no effect."""
        return list(range(len(call_timesteps)))


class BandTimesteps(Policy):
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
    UniformTimesteps | NormalTimesteps | RandomTimesteps | SingleTimestep | AllTimesteps | BandTimesteps,
    Field(discriminator="kind"),
]


def _spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items at even intervals, both ends among them; all when there are not more."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
