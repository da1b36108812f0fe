import pytest
import torch

from compress.errors import InputError
from compress.evaluate.noise_floor import TwoRuns, noise_error_floor, psnr_floor, run_twice, thread_count
from compress.evaluate.paired import MAX_PSNR


def test_thread_count_is_set_inside_and_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), thread_count(3):
        assert torch.get_num_threads() == 3
        raise KeyError
    assert torch.get_num_threads() == before


def test_both_runs_compute_with_their_own_threads() -> None:
    before = torch.get_num_threads()
    runs = run_twice(lambda: torch.tensor([float(torch.get_num_threads())]), threads=(1, 3))
    assert (runs.first.item(), runs.second.item()) == (1, 3)
    assert runs.labels == {"floor": "threads 1 and 3"}
    assert torch.get_num_threads() == before


def test_a_function_that_reuses_its_buffer_is_still_compared_with_itself() -> None:
    buffer = torch.zeros(2, 1, 12, 12)
    runs = run_twice(lambda: buffer.add_(0.5))
    assert float(runs.first.max()) == 0.5 and float(runs.second.max()) == 1.0


def test_identical_runs_have_zero_error_and_the_capped_psnr() -> None:
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    runs = run_twice(lambda: x)
    floor = noise_error_floor(runs, torch.ones(4))
    assert [m.value for m in floor] == [0, 0]
    assert psnr_floor(runs)[0].value == MAX_PSNR


def test_floors_are_marked_and_belong_to_the_reference() -> None:
    x = torch.zeros(4, 1, 12, 12)
    runs = TwoRuns(x, x + 1e-3, (1, 2))
    metrics = [*noise_error_floor(runs, torch.arange(1, 5), bands=2), *psnr_floor(runs)]
    assert all(m.artefact == "reference" and m.labels["floor"] == "threads 1 and 2" for m in metrics)
    assert metrics[0].value == pytest.approx(1e-6, rel=1e-4)
    assert metrics[1].labels["band"] == "0"


def test_floors_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="two thread counts"):
        run_twice(lambda: torch.zeros(1), threads=(2, 2))
    with pytest.raises(InputError, match="at least 1"):
        run_twice(lambda: torch.zeros(1), threads=(0, 2))
    with pytest.raises(InputError, match="two shapes"):
        run_twice(lambda: torch.zeros(torch.get_num_threads()))
