"""What determines a trajectory: its settings, what follows from them, and their hash."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from compress.calibration.conditions import Conditions
from compress.calibration.policies import NormalTimesteps, TimestepPolicy
from compress.calibration.sampler import Sampler, call_timesteps, make_scheduler, stream_seed
from compress.calibration.store import LAYOUT_VERSION
from compress.config import content_hash
from compress.errors import MemoryBudgetError, RecipeError
from compress.models.adapter import Adapter


@dataclass(frozen=True)
class TrajectorySpec:
    """Everything that determines a trajectory, besides the adapter.

    Attributes:
        scheduler_config: the model's own, from its scheduler folder.
        conditions: already resolved, see `resolve_conditions`.
        model_hashes: SHA-256 of every file of the model; the caller knows them.
        batch_size: samples that go through the sampler together, at most; they make one chunk.
        memory_cap_bytes: what the logged tensors of one chunk may take; chunks get smaller to stay below it.
        dtype: in which the model computes, for the hash alone.
    """

    sampler: Sampler
    scheduler_config: Mapping[str, Any]
    conditions: Conditions
    timesteps: TimestepPolicy
    samples: int
    seed: int = 0
    model_hashes: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 16
    memory_cap_bytes: int = 256 << 20
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Calls:
    """The model calls of one sample: their timesteps and noise levels, in order."""

    scheduler: Any
    timesteps: list[float]
    sigmas: list[float]
    train_timesteps: int

    def chosen(self, spec: TrajectorySpec, index: int) -> list[int]:
        """Calls of sample `index` that are stored."""
        return spec.timesteps.choose(self.timesteps, self.sigmas, self.train_timesteps, _seed(spec, index))

    def fed(self, spec: TrajectorySpec, index: int) -> list[float]:
        """The timestep stored with each of them."""
        return spec.timesteps.fed_timesteps(self.timesteps, self.sigmas, self.train_timesteps, _seed(spec, index))


@dataclass(frozen=True)
class Plan:
    """A spec with what follows from it."""

    spec: TrajectorySpec
    scheduler: Any
    shape: tuple[int, int, int]
    timesteps: list[float]  # of every model call
    sigmas: list[float]
    train_timesteps: int
    chunk_samples: int
    facts: dict[str, Any]
    hash: str

    def chosen(self, index: int) -> list[tuple[int, float]]:
        """Model calls of sample `index` that are stored, each with the timestep stored for it."""
        calls = Calls(self.scheduler, self.timesteps, self.sigmas, self.train_timesteps)
        return list(zip(calls.chosen(self.spec, index), calls.fed(self.spec, index), strict=True))


def calibrated_timesteps(adapter: Adapter, spec: TrajectorySpec) -> tuple[float, ...]:
    """Ascending timesteps that the trajectory of `spec` holds, over all its samples; loads no weights.

    Raises:
        RecipeError: sampler, timesteps and model do not fit each other, or the timesteps stored are not the sampler's.
    """
    if isinstance(spec.timesteps, NormalTimesteps) and spec.timesteps.pairing == "compat":
        raise RecipeError(
            "`pairing: compat` stores timesteps that belong to other samples, and no two alike",
            hint="use another `calibration.timesteps`, or one scale for all timesteps",
        )
    calls = _calls(adapter, spec)
    return tuple(sorted({t for index in range(spec.samples) for t in calls.fed(spec, index)}))


def spec_hash(adapter: Adapter, spec: TrajectorySpec) -> str:
    """SHA-256 of everything that determines the trajectory, 64 hexadecimal digits; loads no weights.

    Raises:
        RecipeError: sampler, timesteps and model do not fit each other.
        MemoryBudgetError: one sample alone logs more than the memory cap.
    """
    return make_plan(adapter, spec).hash


def make_plan(adapter: Adapter, spec: TrajectorySpec) -> Plan:
    scheduler, timesteps, sigmas, train_timesteps = vars(_calls(adapter, spec)).values()
    shape = adapter.sample_shape()
    rows = len(spec.timesteps.choose(timesteps, sigmas, train_timesteps, 0))
    chunk_samples = _chunk_samples(spec, rows, shape)
    facts = _facts(spec, shape, chunk_samples)
    return Plan(spec, scheduler, shape, timesteps, sigmas, train_timesteps, chunk_samples, facts, content_hash(facts))


def _calls(adapter: Adapter, spec: TrajectorySpec) -> Calls:
    schedule = adapter.noise_schedule()
    scheduler = make_scheduler(spec.sampler, spec.scheduler_config)
    timesteps = call_timesteps(scheduler, spec.sampler)
    sigmas: list[float] = schedule.sigma(torch.tensor(timesteps)).tolist()
    return Calls(scheduler, timesteps, sigmas, schedule.train_timesteps)


def _seed(spec: TrajectorySpec, index: int) -> int:
    """What sample `index` draws its timesteps from."""
    return stream_seed(spec.seed, "timesteps", 0 if spec.timesteps.shared_draw else index)


def _chunk_samples(spec: TrajectorySpec, rows: int, shape: tuple[int, int, int]) -> int:
    """Samples per chunk, for a chunk's logged tensors to stay under the memory cap."""
    pair = spec.conditions([0])
    row_bytes = 4 * (math.prod(shape) + 4)  # sample, t, sigma, call, index
    tensors = [*pair.condition.values(), *(pair.null or {}).values()]
    sample_bytes = rows * row_bytes + sum(tensor.nbytes for tensor in tensors)
    fitting = spec.memory_cap_bytes // sample_bytes
    if fitting == 0:
        raise MemoryBudgetError(
            f"one sample logs {sample_bytes} bytes, the cap of a trajectory chunk is {spec.memory_cap_bytes}",
            hint="store fewer timesteps or raise the memory budget",
        )
    return min(fitting, spec.batch_size)


def _facts(spec: TrajectorySpec, shape: tuple[int, int, int], chunk_samples: int) -> dict[str, Any]:
    """Everything that determines the files, as JSON data. Versions count: samplers change between releases."""
    return {
        "layout": LAYOUT_VERSION,
        "versions": {name: _version(name) for name in ("compress", "torch", "diffusers")},
        "model": dict(spec.model_hashes),
        "device": spec.device,
        "dtype": spec.dtype,
        "shape": list(shape),
        "sampler": spec.sampler.model_dump(mode="json"),
        "scheduler": {k: _json_value(v) for k, v in spec.scheduler_config.items() if k[0] != "_" or k == "_class_name"},
        "conditions": dict(spec.conditions.facts),
        "timesteps": spec.timesteps.facts(),
        "samples": spec.samples,
        "seed": spec.seed,
        "chunk_samples": chunk_samples,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _json_value(value: Any) -> Any:
    """A scheduler setting in JSON types: diffusers keeps arrays and infinities among them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
