"""Jobs for methods that learn on a trajectory, around tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline
from torch import nn

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import TimestepPolicy, UniformTimesteps
from compress.calibration.sampler import Sampler
from compress.calibration.trajectory import Trajectory, TrajectorySpec, log_trajectory
from compress.models.adapter import Adapter, LayerInfo, Role
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve
from compress.quantize.job import Calibration, QuantizeJob
from compress.quantize.rules import Assignment, assign
from compress.quantize.settings import ActivationSettings, Rule, WeightSettings
from compress.quantize.statistics import static_scales

INT4 = WeightSettings(format="int4", symmetric=False)
STATIC = ActivationSettings(format="int8", granularity="tensor", mode="static", symmetric=False)


@dataclass
class Notes:
    """Progress that keeps what it is told."""

    lines: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    def start(self, title: str, total: int) -> None:
        self.titles.append(title)

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.lines.append(text)


def tiny_adapter(folder: Path, family: str) -> Adapter:
    """Adapter of a tiny pipeline, `dit` or `unet`, written to `folder`."""
    write = tiny_dit_pipeline if family == "dit" else tiny_unet2d_pipeline
    return open_adapter(resolve(str(write(folder))))


def logged(
    adapter: Adapter,
    folder: Path,
    *,
    samples: int = 8,
    steps: int = 4,
    timesteps: TimestepPolicy | None = None,
    seed: int = 0,
) -> Trajectory:
    """A short guided DDIM trajectory of the adapter's model."""
    spec = TrajectorySpec(
        sampler=Sampler(kind="ddim", steps=steps, guidance_scale=1.5),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter, folders=()),
        timesteps=timesteps or UniformTimesteps(),
        samples=samples,
        seed=seed,
    )
    return log_trajectory(adapter, adapter.load(), spec, folder)


def split_skips(assignments: Sequence[Assignment]) -> list[Assignment]:
    """The same with every layer divided that reads a concatenation."""
    return [
        replace(a, spec=replace(a.spec, split=a.info.split)) if a.spec and a.info.split is not None else a
        for a in assignments
    ]


def one_layer(weights: WeightSettings, activations: ActivationSettings) -> list[Assignment]:
    """One linear layer with these formats."""
    info = LayerInfo("layer", "linear", Role.LINEAR, None, (8, 16), True)
    return assign([info], weights, activations, ())


def job_for(
    adapter: Adapter,
    trajectory: Trajectory,
    work: Path,
    *,
    weights: WeightSettings = INT4,
    activations: ActivationSettings = STATIC,
    rules: Sequence[Rule] = (),
    split: bool = True,
    seed: int = 0,
) -> QuantizeJob:
    """A job over all of the model's layers, with measured static scales; `calibration.progress` is `Notes`."""
    model: nn.Module = adapter.load()
    assignments = [a for a in assign(adapter.layers(model), weights, activations, rules) if a.spec is not None]
    assignments = split_skips(assignments) if split else assignments
    tensors = model.state_dict()
    work.mkdir(parents=True, exist_ok=True)
    return QuantizeJob(
        assignments=tuple(assignments),
        read=lambda name: tensors[name].float(),
        static_scales=static_scales(adapter, adapter.load(), trajectory, assignments),
        seed=seed,
        calibration=Calibration(adapter, adapter.load, lambda: trajectory, work, progress=Notes()),
    )
