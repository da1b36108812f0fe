"""The clock knows which timestep each sample is at."""

from __future__ import annotations

import copy
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from packed import TIMED, packed_model
from tiny import TINY_CONFIGS, tiny_model
from torch import Tensor, nn

from compress.errors import RunError, UnsupportedLayer
from compress.formats import WeightSpec
from compress.models.source import open_adapter, resolve
from compress.quantize.clock import Clock, install_clock
from compress.quantize.spec import LayerSpec


class Timed(nn.Module):
    """Scales its input by what the clock picks."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.register_buffer("values", torch.tensor([1.0, 10.0, 100.0]))

    def forward(self, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> Tensor:
        return sample * self.clock.pick(self.values, sample) * scale


def test_the_nearest_timestep_counts_and_ties_go_to_the_lower() -> None:
    clock = Clock([0.0, 10.0, 500.0])
    clock.look(torch.tensor([4, 5, 6, 254, 255, 256, 9000, -3]), 8)
    assert clock.indices.tolist() == [0, 0, 1, 1, 1, 2, 2, 0]


def test_a_single_timestep_is_everybodys() -> None:
    clock = Clock([0.0, 10.0])
    for timestep in (torch.tensor(9), torch.tensor([9.0]), 9):
        clock.look(timestep, 3)
        assert clock.indices.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 4), (2, 4, 3, 3)])
def test_values_broadcast_against_rows(shape: tuple[int, ...]) -> None:
    clock = Clock([1.0, 2.0])
    clock.look(torch.tensor([2.0, 1.0]), 2)
    found = clock.pick(torch.tensor([3.0, 4.0]), torch.zeros(shape))
    assert found.shape == (2, *(1 for _ in shape[1:]))
    assert found.flatten().tolist() == [4.0, 3.0]


def test_positions_in_the_batch_have_the_timestep_of_their_sample() -> None:
    clock = Clock([1.0, 2.0])
    clock.look(torch.tensor([2.0, 1.0]), 2)
    assert clock.pick(torch.tensor([3.0, 4.0]), torch.zeros(6, 5)).flatten().tolist() == [4, 4, 4, 3, 3, 3]
    with pytest.raises(RunError, match="5 rows cannot be shared out over 2 samples"):
        clock.pick(torch.tensor([3.0, 4.0]), torch.zeros(5, 5))


def test_a_model_sets_its_clock_until_the_handle_goes() -> None:
    clock = Clock([0.0, 10.0, 20.0])
    model = Timed(clock)
    handle = install_clock(model, clock)
    x = torch.ones(2, 1)
    assert model(x, torch.tensor([19, 1])).flatten().tolist() == [100.0, 1.0]
    assert model(timestep=torch.tensor(11), sample=x).flatten().tolist() == [10.0, 10.0]
    handle.remove()
    assert model(x, torch.tensor([19, 1])).flatten().tolist() == [10.0, 10.0]


def test_threads_that_run_a_model_at_once_do_not_disturb_each_other() -> None:
    clock = Clock([0.0, 500.0, 999.0])
    model, looked, found = Timed(clock), Barrier(2), dict[float, list[float]]()
    install_clock(model, clock)

    def wait_for_the_other(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        looked.wait(timeout=10)  # both threads have looked before either layer picks

    model.register_forward_pre_hook(wait_for_the_other)

    def run(t: float) -> None:
        found[t] = model(torch.ones(2), torch.full((2,), t)).tolist()

    threads = [Thread(target=run, args=(t,)) for t in (0.0, 999.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0.0: [1.0, 1.0], 999.0: [100.0, 100.0]}


def test_a_copy_has_a_clock_of_its_own() -> None:
    clock = Clock([0.0, 10.0, 20.0])
    model = Timed(clock)
    install_clock(model, clock)
    x = torch.ones(1, 1)
    twin = copy.deepcopy(model)
    assert twin.clock is not clock
    assert float(twin(x, torch.tensor([20]))) == 100.0
    assert clock.indices.tolist() == [0]
    assert float(model(x, torch.tensor([10]))) == 10.0
    assert twin.clock.indices.tolist() == [2]


def test_a_model_without_timestep_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="Linear takes no `timestep`"):
        install_clock(nn.Linear(2, 2), Clock([1.0]))


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_families_keep_the_samplers_time(name: str, tmp_path: Path) -> None:
    """Flux' forward takes t / 1000. A sample's result does not depend on the others' timesteps."""
    tiny_model(name).save_pretrained(tmp_path)
    adapter = open_adapter(resolve(str(tmp_path)))
    model, inputs = packed_model(adapter, LayerSpec(WeightSpec("int8"), TIMED)), adapter.example_inputs(3)
    sample = inputs.sample[..., :8, :8].contiguous()
    t = torch.tensor([940.0, 20.0, 500.0])
    with torch.no_grad():
        together = adapter.denoise(model, sample, t, inputs.condition)
        clock = next(module.clock for module in model.modules() if getattr(module, "clock", None) is not None)
        assert clock.indices.tolist() == [2, 0, 1]
        one = {key: value[2:] for key, value in inputs.condition.items()}
        assert torch.allclose(adapter.denoise(model, sample[2:], t[2:], one), together[2:], atol=1e-5)
