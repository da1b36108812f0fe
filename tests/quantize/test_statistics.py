"""Static scales: of parts, of timesteps, of smoothed inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_unet2d_pipeline
from torch import Tensor

from compress.calibration.capture import capture
from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import AllTimesteps
from compress.calibration.sampler import Sampler, denoise_with
from compress.calibration.spec import calibrated_timesteps
from compress.calibration.trajectory import Record, Trajectory, TrajectorySpec, log_trajectory
from compress.formats import WeightSpec
from compress.models.adapter import Adapter, LayerInfo, Role
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve
from compress.quantize.observers.ema import Ema
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings
from compress.quantize.spec import ActivationSpec, LayerSpec
from compress.quantize.statistics import PartWatch, static_scales

LAYER = "up_blocks.0.resnets.0.conv_shortcut"  # reads 32 channels of backbone and 32 of a skip
TOKENS = "mid_block.attentions.0.to_q"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Trajectory, tuple[float, ...]]:
    folder = tmp_path_factory.mktemp("statistics")
    adapter = open_adapter(resolve(str(tiny_unet2d_pipeline(folder / "model"))))
    spec = TrajectorySpec(
        sampler=Sampler(steps=3, guidance_scale=1.5),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        timesteps=AllTimesteps(),
        samples=3,
    )
    trajectory = log_trajectory(adapter, adapter.load(), spec, folder / "trajectory")
    return adapter, trajectory, calibrated_timesteps(adapter, spec)


def assignment(adapter: Adapter, name: str, split: int | None = None, **changes: object) -> Assignment:
    info = next(layer for layer in adapter.layers(adapter.skeleton()) if layer.name == name)
    spec = LayerSpec(WeightSpec("int8"), replace(ActivationSpec("int8", "static"), **changes), split=split)
    settings = ActivationSettings(
        format="int8", mode="static", granularity="tensor", symmetric=changes.get("symmetric", True)
    )
    return Assignment(info, spec, settings)


def inputs_of(adapter: Adapter, trajectory: Trajectory, name: str) -> tuple[Tensor, Tensor]:
    """Every input of the layer, and the timestep of each."""
    seen: list[Tensor] = []
    times = []
    model = adapter.load()
    with torch.no_grad(), capture(model, [name], lambda layer, x, sigma: seen.append(x.clone())):
        for batch in trajectory.batches(8):
            denoise_with(adapter, model)(batch.sample, batch.t, batch.condition)
            times.append(batch.t)
    return torch.cat(seen), torch.cat(times)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_timestep_and_every_part_has_its_own_extremes(logged, batch_size: int) -> None:
    adapter, trajectory, timesteps = logged
    assert len(timesteps) == 3
    chosen = assignment(adapter, LAYER, 32, timesteps=timesteps)
    found = static_scales(adapter, adapter.load(), trajectory, [chosen], batch_size=batch_size)
    x, t = inputs_of(adapter, trajectory, LAYER)
    assert set(found) == {f"{LAYER}.backbone", f"{LAYER}.skip"}
    for name, channels in (("backbone", slice(0, 32)), ("skip", slice(32, None))):
        largest = [float(x[t == value][:, channels].abs().max()) for value in timesteps]
        assert found[f"{LAYER}.{name}"].scale.tolist() == pytest.approx([value / 127 for value in largest], rel=1e-5)
        assert len(set(largest)) == 3


def test_one_scale_covers_what_all_timesteps_need(logged) -> None:
    adapter, trajectory, timesteps = logged
    shared = static_scales(adapter, adapter.load(), trajectory, [assignment(adapter, TOKENS)])[TOKENS]
    each = static_scales(adapter, adapter.load(), trajectory, [assignment(adapter, TOKENS, timesteps=timesteps)])
    assert shared.scale.tolist() == [float(each[TOKENS].scale.max())]


def test_unvisited_timesteps_go_to_the_nearest(logged) -> None:
    """A set of timesteps coarser than the trajectory: its observers see what the layer will use their scales for."""
    adapter, trajectory, timesteps = logged
    ends = (timesteps[0], timesteps[-1])
    chosen = assignment(adapter, TOKENS, timesteps=ends, symmetric=False)
    found = static_scales(adapter, adapter.load(), trajectory, [chosen])[TOKENS]
    x, t = inputs_of(adapter, trajectory, TOKENS)
    nearer = [(t - ends[0]).abs() <= (t - ends[1]).abs(), (t - ends[0]).abs() > (t - ends[1]).abs()]
    ranges = [(float(x[rows].min()), float(x[rows].max())) for rows in nearer]
    assert found.scale.tolist() == pytest.approx([(high - low) / 255 for low, high in ranges], rel=1e-5)
    assert found.zero_point is not None
    assert found.zero_point.tolist() == [round(-low / ((high - low) / 255)) for low, high in ranges]


def test_smoothing_comes_first(logged) -> None:
    adapter, trajectory, _ = logged
    factors = {f"{LAYER}.skip": torch.linspace(0.1, 2.0, 32), TOKENS: torch.linspace(0.1, 2.0, 32)}
    chosen = [assignment(adapter, LAYER, 32), assignment(adapter, TOKENS)]
    found = static_scales(adapter, adapter.load(), trajectory, chosen, smooth=factors)
    image, tokens = (inputs_of(adapter, trajectory, name)[0] for name in (LAYER, TOKENS))
    image = image[:, 32:] * factors[TOKENS][:, None, None]
    expected = [float(value.abs().max()) / 127 for value in (image, tokens * factors[TOKENS])]
    assert [float(found[name].scale) for name in factors] == pytest.approx(expected, rel=1e-5)


def test_without_static_inputs_nothing_runs(logged) -> None:
    adapter, trajectory, _ = logged
    info = adapter.layers(adapter.skeleton())[0]
    assert static_scales(adapter, torch.nn.Identity(), trajectory, [Assignment(info, None, ActivationSettings())]) == {}


def test_a_running_average_sees_the_timesteps_mixed(logged) -> None:
    """In the order of logging it would remember the last timesteps only (Q-Diffusion's released LDM script)."""
    adapter, trajectory, _ = logged
    ordered = {batch.t.tolist()[0] for batch in trajectory.batches(1)}
    mixed = [batch.t.tolist() for batch in trajectory.batches(4, shuffle=3)]
    assert any(len(set(batch)) > 1 for batch in mixed)
    assert {t for batch in mixed for t in batch} == ordered
    assert sum(map(len, mixed)) == len(trajectory)
    assert mixed == [batch.t.tolist() for batch in trajectory.batches(4, shuffle=3)]

    average = ActivationSettings(format="int8", mode="static", granularity="tensor", observer=Ema(decay=0.5))
    averaged = replace(assignment(adapter, TOKENS), activations=average)
    found = [
        float(static_scales(adapter, adapter.load(), trajectory, [averaged], batch_size=4, seed=seed)[TOKENS].scale)
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_averages_of_single_timesteps_are_not_mixed_with_others(logged) -> None:
    """The range of a batch grows with it: one timestep's average sees the batches it would see by itself."""
    adapter, trajectory, timesteps = logged
    average = ActivationSettings(format="int8", mode="static", granularity="tensor", observer=Ema(decay=0.5))
    alone = replace(assignment(adapter, TOKENS, timesteps=timesteps), activations=average)
    shared = replace(assignment(adapter, LAYER), activations=average)

    def measure(*assignments: Assignment) -> dict[str, list[float]]:
        told: list[int] = []
        found = static_scales(
            adapter, adapter.load(), trajectory, assignments, lambda done, _: told.append(done), batch_size=4
        )
        assert told == sorted(told)
        assert told[-1] == len(trajectory)
        return {name: scale.scale.tolist() for name, scale in found.items()}

    assert measure(alone, shared) == measure(alone) | measure(shared)


def test_a_grouped_convolution_is_measured_whole() -> None:
    """Its weight has the channels of one group only, its input those of all."""
    info = LayerInfo("depthwise", "conv2d", Role.CONV, None, (8, 1, 3, 3), True)
    spec = LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static"))
    settings = ActivationSettings(format="int8", mode="static", granularity="tensor")
    watch = PartWatch(Assignment(info, spec, settings), spec.parts(info.weight_shape)[0], None)
    x = torch.zeros(2, 8, 4, 4)
    x[:, 5] = 100.0
    t = torch.ones(2)
    watch.see(x, Record(x, t, t, {}, torch.zeros(2).long(), torch.arange(2)))
    assert watch.scale().scale.tolist() == pytest.approx([100 / 127])
