"""The whole of calibration on real diffusers models, tiny ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline
from torch import Tensor, nn

from compress.calibration import (
    Draw,
    Sampler,
    TrajectorySpec,
    denoise_with,
    layer_inputs,
    log_trajectory,
    make_scheduler,
    resolve_conditions,
    run_over,
    sample_batches,
    spec_hash,
)
from compress.calibration.conditions import ClassConditions
from compress.calibration.policies import UniformTimesteps
from compress.models.adapter import Adapter
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve


@pytest.fixture(params=[tiny_dit_pipeline, tiny_unet2d_pipeline], ids=["dit", "unet"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    build: Callable[[Path], Path] = request.param
    return open_adapter(resolve(str(build(tmp_path / "model"))))


@pytest.fixture
def spec(adapter: Adapter) -> TrajectorySpec:
    return TrajectorySpec(
        sampler=Sampler(kind="ddim", steps=6, guidance_scale=1.5),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        timesteps=UniformTimesteps(count=3),
        samples=5,
        batch_size=2,
    )


def test_every_layer_is_observed_over_a_whole_trajectory(
    adapter: Adapter, spec: TrajectorySpec, tmp_path: Path
) -> None:
    model = adapter.load()
    trajectory = log_trajectory(adapter, model, spec, tmp_path / "trajectory")
    assert trajectory.hash == spec_hash(adapter, spec)
    assert len(trajectory) == 5 * 3 * 2
    names = [layer.name for layer in adapter.layers(model)]
    largest: dict[str, float] = {}

    def observer(name: str) -> Callable[[Tensor, Tensor], None]:
        def observe(x: Tensor, sigma: Tensor) -> None:
            assert len(x) % len(sigma) == 0
            largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

        return observe

    run_over(adapter, model, trajectory, {name: observer(name) for name in names}, batch_size=8)
    assert set(names) == set(largest)
    assert all(0 < value < 1e4 for value in largest.values())


def test_recorded_inputs_reproduce_the_model(adapter: Adapter, spec: TrajectorySpec, tmp_path: Path) -> None:
    model = adapter.load()
    trajectory = log_trajectory(adapter, model, spec, tmp_path / "trajectory")
    record = trajectory.pairs(6, seed=0)
    names = [layer.name for layer in adapter.layers(model)]
    inputs = layer_inputs(adapter, model, record, names)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, output: outputs.update({name: output}) if name not in outputs else None

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    adapter.denoise(model, record.sample, record.t, record.condition)
    for hook in hooks:
        hook.remove()
    for name in names:
        assert torch.allclose(model.get_submodule(name)(inputs[name]), outputs[name], atol=1e-5), name


def test_images_do_not_depend_on_the_batch_size(adapter: Adapter, spec: TrajectorySpec) -> None:
    settings = Sampler(kind="ddpm", steps=4, guidance_scale=2.0)
    scheduler = make_scheduler(settings, spec.scheduler_config)
    denoise = denoise_with(adapter, adapter.load())
    draws = [Draw(5, adapter.sample_shape(), seed=2, batch_size=size) for size in (1, 5)]
    one, five = (sample_batches(denoise, scheduler, settings, spec.conditions, draw) for draw in draws)
    assert torch.allclose(one, five, atol=1e-4)
    assert one.shape == (5, *adapter.sample_shape())


def test_half_precision_models_are_logged_in_single(adapter: Adapter, spec: TrajectorySpec, tmp_path: Path) -> None:
    spec = replace(spec, dtype="bfloat16", samples=2)
    trajectory = log_trajectory(adapter, adapter.load(dtype="bfloat16"), spec, tmp_path / "trajectory")
    assert all(batch.sample.dtype == torch.float32 for batch in trajectory.batches(4))


def test_importing_calibration_is_light() -> None:
    heavy = "{'diffusers', 'datasets', 'scipy', 'onnx', 'transformers'}"
    code = f"import compress.calibration, sys; print(sorted({heavy} & set(sys.modules)))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
