"""The denoiser loop: samples with any diffusers scheduler that fits the model, one guided model call at a time."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.calibration.schedulers import KINDS, build_scheduler
from compress.config import Config
from compress.errors import RecipeError
from compress.models.adapter import Adapter, Condition

Denoise = Callable[[Tensor, Tensor, Condition], Tensor]
"""Raw prediction `[b, c, h, w]` for a sample `[b, c, h, w]`, timesteps `[b]` (float32) and a condition."""

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


class Sampler(Config):
    """How images are drawn from the model."""

    kind: str = Field(
        "ddim",
        description=f"Scheduler: {', '.join(KINDS)}, or the class name of any diffusers scheduler that fits the model.",
        examples=list(KINDS),
    )
    steps: int = Field(20, ge=1, description="Inference steps; some schedulers call the model more often than that.")
    guidance_scale: float = Field(1.0, ge=0, description="Classifier-free guidance; 1 runs the conditional half only.")
    mu: float | None = Field(
        None, description="Shift of the timesteps, for flow schedulers that derive theirs from the image size."
    )

    @property
    def guided(self) -> bool:
        """Whether every model call has an unconditional half."""
        return self.guidance_scale != 1.0


class ConditionPair(NamedTuple):
    """Conditions of a batch and those of its unconditional half; `null` is None for a model without one."""

    condition: Condition
    null: Condition | None


@dataclass(frozen=True)
class Call:
    """One model call: its number, timestep, what the model saw `[b, c, h, w]`, and the raw output of each half."""

    index: int
    t: float
    sample: Tensor
    output_cond: Tensor
    output_null: Tensor | None


@dataclass(frozen=True)
class Draw:
    """Which samples to make: numbers `first` to `first + n - 1`, the same for every `batch_size` but the last bits."""

    n: int
    shape: tuple[int, int, int]
    seed: int = 0
    first: int = 0
    batch_size: int = 16
    device: str = "cpu"


def make_scheduler(settings: Sampler, scheduler_config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler of the kind asked for, on the noise schedule of the model's `scheduler_config`.

    Raises:
        RecipeError: unknown kind, a kind that does not fit the model, or a number of steps that the scheduler refuses.
    """
    scheduler = build_scheduler(settings.kind, scheduler_config)
    timesteps = call_timesteps(scheduler, settings)
    if timesteps[0] < timesteps[-1]:
        raise RecipeError(f"sampler `{settings.kind}` runs from image to noise", hint="choose one that denoises")
    return scheduler


def call_timesteps(scheduler: Any, settings: Sampler) -> list[float]:
    """The timestep of every model call, in the order of sampling."""
    return [float(t) for t in _started(scheduler, settings, "cpu").timesteps]


def denoise_with(adapter: Adapter, model: nn.Module) -> Denoise:
    """`model` as the sampler calls it: sample and condition go in with the precision of its weights."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def denoise(sample: Tensor, t: Tensor, condition: Condition) -> Tensor:
        typed = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        return adapter.denoise(model, sample.to(dtype), t, typed)

    return denoise


@torch.no_grad()
def sample(
    denoise: Denoise,
    scheduler: Any,
    settings: Sampler,
    noise: Tensor,
    condition: Condition,
    null_condition: Condition | None = None,
    *,
    generators: Sequence[torch.Generator] | None = None,
    on_call: Callable[[Call], None] | None = None,
) -> Tensor:
    """Final samples `[n, c, h, w]` from standard normal `noise` of that shape; `scheduler` itself is not touched.

    Both halves of a guided call run as one doubled batch, conditional first, and combine to
    `eps_null + g * (eps_cond - eps_null)` (Ho and Salimans 2022, eq. 6, with g = 1 + w).

    Args:
        generators: one per sample, for schedulers that add noise; None draws from a single generator seeded with 0.
        on_call: sees every model call, before its scheduler step.

    Raises:
        RecipeError: guidance is asked of a model that has no unconditional input.
    """
    if settings.guided and null_condition is None:
        raise RecipeError("guidance needs an unconditional input, which this model lacks", hint="set guidance_scale: 1")
    scheduler = _started(scheduler, settings, noise.device)
    options: dict[str, Any] = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators) if generators else torch.Generator().manual_seed(0)
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for index, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        call = _call_model(denoise, index, float(timestep), seen, ConditionPair(condition, null_condition), settings)
        if on_call is not None:
            on_call(call)
        output = call.output_cond
        if call.output_null is not None:
            output = call.output_null + settings.guidance_scale * (call.output_cond - call.output_null)
        x = scheduler.step(output, timestep, x, **options)[0]
    return x


def sample_batches(
    denoise: Denoise,
    scheduler: Any,
    settings: Sampler,
    conditions: Callable[[Sequence[int]], ConditionPair],
    draw: Draw,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Samples `[n, c, h, w]` on the CPU, `batch_size` at a time; `conditions` maps sample numbers to theirs."""
    done: list[Tensor] = []
    end = draw.first + draw.n
    for first in range(draw.first, end, draw.batch_size):
        indices = range(first, min(first + draw.batch_size, end))
        pair = conditions(indices)
        noise = initial_noise(draw.shape, draw.seed, indices).to(draw.device)
        generators = sample_generators(draw.seed, indices)
        device_pair = ConditionPair(to_device(pair.condition, draw.device), to_device(pair.null, draw.device))
        done.append(sample(denoise, scheduler, settings, noise, *device_pair, generators=generators).cpu())
        if progress is not None:
            progress(indices[-1] + 1 - draw.first, draw.n)
    return torch.cat(done) if done else torch.empty(0, *draw.shape)


def initial_noise(shape: Sequence[int], seed: int, indices: Sequence[int]) -> Tensor:
    """Standard normal `[len(indices), *shape]`; sample i depends on (seed, i) alone, so batching never changes it."""
    generators = (torch.Generator().manual_seed(stream_seed(seed, "noise", i)) for i in indices)
    drawn = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape)


def sample_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample for the noise that stochastic schedulers add, apart from the stream of initial noise."""
    return [torch.Generator().manual_seed(stream_seed(seed, "steps", i)) for i in indices]


def stream_seed(seed: int, stream: str, index: int) -> int:
    """Seed in [0, 2**32) of item `index` of a named stream; no two items of a stream share one.

    torch's CPU generator uses the low 32 bits of its seed, where plain hashes of 50 000 samples would likely collide.
    So the index goes through a bijection of 32-bit integers (the finalizer of MurmurHash3, Appleby, public domain).
    """
    h = index & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    h ^= h >> 16
    return h ^ int.from_bytes(hashlib.sha256(f"{stream}:{seed}".encode()).digest()[:4], "little")


def to_device(condition: Condition | None, device: str | torch.device) -> Any:
    """The condition with every tensor on `device`; None stays None."""
    return None if condition is None else {name: tensor.to(device) for name, tensor in condition.items()}


def _started(scheduler: Any, settings: Sampler, device: str | torch.device) -> Any:
    """A fresh copy of `scheduler` set to the steps of `settings`: schedulers keep history between steps."""
    scheduler = copy.deepcopy(scheduler)
    shift = {} if settings.mu is None else {"mu": settings.mu}
    if shift and "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise RecipeError(f"sampler `{settings.kind}` takes no `mu`", hint="remove `mu`")
    try:
        scheduler.set_timesteps(settings.steps, device=device, **shift)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise RecipeError(f"sampler `{settings.kind}` refuses {settings.steps} steps: {error}") from error
    return scheduler


def _call_model(
    denoise: Denoise, index: int, timestep: float, seen: Tensor, pair: ConditionPair, settings: Sampler
) -> Call:
    """One model call, with both halves in one batch when guided; g = 1 takes nothing from the null half."""
    b, inputs, condition = len(seen), seen, pair.condition
    if settings.guided and pair.null is not None:
        inputs = torch.cat([seen, seen])
        condition = {name: torch.cat([tensor, pair.null[name]]) for name, tensor in pair.condition.items()}
    t = torch.full((len(inputs),), timestep, dtype=torch.float32, device=seen.device)
    output = denoise(inputs, t, condition).to(seen.dtype)
    return Call(index, timestep, seen, output[:b], output[b:] if len(output) > b else None)
