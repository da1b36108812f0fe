from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibration_fakes import SHAPE, VP_CONFIG, FakeAdapter
from torch import Tensor, nn

from compress.calibration.capture import capture, layer_inputs, load_inputs, run_over, save_inputs
from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import UniformTimesteps
from compress.calibration.sampler import Sampler
from compress.calibration.trajectory import Trajectory, TrajectorySpec, log_trajectory
from compress.errors import UnsupportedLayer

ADAPTER = FakeAdapter()


@pytest.fixture
def model() -> nn.Module:
    return ADAPTER.load()


@pytest.fixture
def trajectory(tmp_path: Path, model: nn.Module) -> Trajectory:
    spec = TrajectorySpec(
        sampler=Sampler(steps=4, guidance_scale=2.0),
        scheduler_config=VP_CONFIG,
        conditions=resolve_conditions(ClassConditions(), ADAPTER),
        timesteps=UniformTimesteps(count=2),
        samples=3,
    )
    return log_trajectory(ADAPTER, model, spec, tmp_path / "trajectory")


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("batch_size", [1, 5, 401])
def test_observers_see_every_input_with_its_noise_level(
    model: nn.Module, trajectory: Trajectory, batch_size: int
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    counts = {"blocks.0": 0}
    done: list[tuple[int, int]] = []

    def count(x: Tensor, sigma: Tensor) -> None:
        assert x.shape == (len(sigma), *SHAPE)
        counts["blocks.0"] += len(x)

    observers = {"mix": lambda x, sigma: seen.append((x.clone(), sigma)), "blocks.0": count}
    run_over(ADAPTER, model, trajectory, observers, batch_size, progress=lambda *now: done.append(now))
    expected = list(trajectory.batches(401))
    assert torch.equal(torch.cat([x for x, _ in seen]), torch.cat([batch.sample for batch in expected]))
    assert torch.equal(torch.cat([sigma for _, sigma in seen]), torch.cat([batch.sigma for batch in expected]))
    assert counts["blocks.0"] == 2 * len(trajectory)  # the layer runs twice in a forward
    assert done[-1] == (12, 12)
    assert _hooks(model) == 0


def test_hooks_are_gone_after_an_error(model: nn.Module, trajectory: Trajectory) -> None:
    def fail(x: Tensor, sigma: Tensor) -> None:
        raise RuntimeError("observer")

    with pytest.raises(RuntimeError, match="observer"):
        run_over(ADAPTER, model, trajectory, {"mix": fail})
    assert _hooks(model) == 0


def test_an_unknown_layer_is_named_with_a_suggestion(model: nn.Module) -> None:
    with (
        pytest.raises(UnsupportedLayer, match=r"block\.0: the model has no such layer \(did you mean `blocks.0`"),
        capture(model, ["mix", "block.0"], lambda name, x, sigma: None),
    ):
        pytest.fail("the block must not run")
    assert _hooks(model) == 0


def test_capture_passes_the_noise_level_that_was_set(model: nn.Module) -> None:
    seen: list[tuple[str, list[float]]] = []
    inputs = ADAPTER.example_inputs(2)
    with capture(model, ["mix"], lambda name, x, sigma: seen.append((name, sigma.tolist()))) as tap:
        for level in (0.5, 2.0):
            tap.sigma = torch.full((2,), level)
            ADAPTER.denoise(model, *inputs)
    ADAPTER.denoise(model, *inputs)
    assert seen == [("mix", [0.5, 0.5]), ("mix", [2.0, 2.0])]


def test_recorded_inputs_survive_a_round_trip(model: nn.Module, trajectory: Trajectory, tmp_path: Path) -> None:
    record = trajectory.pairs(5, seed=0)
    inputs = layer_inputs(ADAPTER, model, record, ["mix", "blocks.0"])
    assert torch.equal(inputs["mix"], record.sample)
    # `mix` does nothing, so both inputs hold the same values, but not the same memory.
    assert torch.equal(inputs["blocks.0"], record.sample)
    assert inputs["mix"].data_ptr() != record.sample.data_ptr()
    save_inputs(tmp_path / "inputs.safetensors", inputs)
    loaded = load_inputs(tmp_path / "inputs.safetensors")
    assert loaded.keys() == inputs.keys()
    assert all(torch.equal(loaded[name], inputs[name]) for name in inputs)
