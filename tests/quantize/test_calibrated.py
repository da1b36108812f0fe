"""The course of methods with learned rounding: what they begin with, what they refuse, what they pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learned import INT4, STATIC, job_for, logged, one_layer, tiny_adapter

from compress.calibration.trajectory import Trajectory
from compress.errors import RecipeError, RunError
from compress.models.adapter import Adapter
from compress.quantize.calibrated import (
    has_static_input,
    learn_inputs,
    learn_weights,
    make_clock,
    open_simulation,
    packed_layers,
    require_integer_grid,
)
from compress.quantize.job import QuantizeJob
from compress.quantize.ranges import RangeSearch, search_scales
from compress.quantize.reconstruct import RoundingSettings, StepSettings
from compress.quantize.settings import ActivationSettings, WeightSettings

ROUNDING = RoundingSettings(iterations=6, batch_size=8, learning_rate=2e-2)
STEPS = StepSettings(iterations=3, batch_size=8)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Trajectory]:
    """A tiny U-Net, which has split layers, and its trajectory."""
    folder = tmp_path_factory.mktemp("unet")
    adapter = tiny_adapter(folder / "model", "unet")
    return adapter, logged(adapter, folder / "log", samples=4, steps=3)


@pytest.fixture
def job(unet: tuple[Adapter, Trajectory], tmp_path: Path) -> QuantizeJob:
    return job_for(*unet, tmp_path / "work")


def output(adapter: Adapter, model: torch.nn.Module) -> torch.Tensor:
    inputs = adapter.example_inputs(3)
    with torch.no_grad():
        return adapter.denoise(model, inputs.sample, inputs.timestep.float(), inputs.condition)


def test_a_simulation_begins_as_the_original(job: QuantizeJob) -> None:
    """Quantizers off: bit-identical (specification, section 3f)."""
    adapter = job.calibration.adapter
    with open_simulation(job, RangeSearch()) as simulation:
        assert torch.equal(output(adapter, simulation.model), output(adapter, adapter.load()))
        assert list(simulation.layers) == [a.info.name for a in job.assignments]
        assert {name for unit in simulation.units for name in unit.layers} == set(simulation.layers)


def test_it_begins_with_searched_ranges_and_measured_scales(job: QuantizeJob) -> None:
    search, halves = RangeSearch(), 0
    with open_simulation(job, search) as simulation:
        for layer in simulation.layers.values():
            halves += len(layer.parts) == 2
            for part in layer.operators():
                found = search_scales(part.weight, part.spec.weights, search)
                assert torch.equal(part.scales.scales, found.scales)
                measured = job.static_scales[part.part.of(layer.name)]
                assert torch.equal(part.inputs.scale, measured.scale)
                assert torch.equal(part.inputs.zero, measured.zero_point)
    assert halves > 0


def test_both_phases_then_packing(job: QuantizeJob) -> None:
    """Zero points and weight scales stay, input scales stay positive; every layer comes out, in order."""
    done: list[str] = []
    job = replace(job, tick=done.append)
    with open_simulation(job, RangeSearch(), inputs=16) as simulation:
        grids = {name: [part.scales for part in layer.operators()] for name, layer in simulation.layers.items()}
        zeros = {name: [part.inputs.zero.clone() for part in x.operators()] for name, x in simulation.layers.items()}
        weights = learn_weights(simulation, ROUNDING)
        inputs = learn_inputs(simulation, STEPS)
        packed = list(packed_layers(simulation))
        assert len(weights) == len(inputs) == len(simulation.units)
        for layer in packed:
            for part, grid, zero in zip(layer.parts, grids[layer.name], zeros[layer.name], strict=True):
                assert torch.equal(part.weight.scales, grid.scales)
                assert torch.equal(part.weight.zero_points, grid.zero_points)
                assert torch.equal(part.inputs["input_zero_point"], zero)
                assert bool((part.inputs["input_scale"] > 0).all())
    assert done == [layer.name for layer in packed] == [a.info.name for a in job.assignments]
    progress = job.calibration.progress
    assert [title for title in progress.titles if title.startswith("learn")] == ["learn rounding", "learn input scales"]
    assert any("% of before" in line for line in progress.lines)


def test_frozen_layers_are_not_learned(job: QuantizeJob) -> None:
    with open_simulation(job, RangeSearch(), inputs=8) as simulation:
        first = simulation.units[0]
        before = [part.codes() for name in first.layers for part in simulation.layers[name].operators()]
        reports = learn_weights(simulation, ROUNDING, frozen=frozenset(first.layers))
        after = [part.codes() for name in first.layers for part in simulation.layers[name].operators()]
    assert first.name not in {report.name for report in reports}
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_dynamic_inputs_have_no_scale_to_learn(unet: tuple[Adapter, Trajectory], tmp_path: Path) -> None:
    job = job_for(*unet, tmp_path / "work", activations=ActivationSettings(format="int8"))
    with open_simulation(job, RangeSearch()) as simulation:
        assert not any(has_static_input(layer) for layer in simulation.layers.values())
        assert learn_inputs(simulation, STEPS) == []
    assert any("no scale is learned" in line for line in job.calibration.progress.lines)


def test_one_clock_for_all_layers() -> None:
    [plain] = one_layer(INT4, STATIC)
    assert make_clock([plain]) is None

    def at(*timesteps: float):
        return replace(
            plain, spec=replace(plain.spec, activations=replace(plain.spec.activations, timesteps=timesteps))
        )

    assert make_clock([plain, at(0.0, 500.0)]).timesteps == (0.0, 500.0)
    with pytest.raises(RunError, match="different timesteps"):
        make_clock([at(0.0, 500.0), at(1.0)])


def test_what_is_missing_is_named(job: QuantizeJob) -> None:
    with (
        pytest.raises(RunError, match="given no calibration"),
        open_simulation(replace(job, calibration=None), RangeSearch()),
    ):
        pass
    with (
        pytest.raises(RunError, match=r"conv_in: no activation scale was measured"),
        open_simulation(replace(job, static_scales={}), RangeSearch()),
    ):
        pass


def test_formats_without_an_even_grid_are_refused() -> None:
    require_integer_grid("some_method", one_layer(WeightSettings(format="int3"), ActivationSettings()))
    with pytest.raises(RecipeError, match=r"`some_method` works on integer grids, `layer` has fp4_e2m1"):
        require_integer_grid("some_method", one_layer(WeightSettings(format="fp4_e2m1"), ActivationSettings()))
