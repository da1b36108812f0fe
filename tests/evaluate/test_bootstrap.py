import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.bootstrap import mean_ci95, paired_difference_ci95, resamples


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = normal(401) * 3 + 7
    interval = mean_ci95(values, seed=0)
    half = 1.96 * float(values.std()) / 401**0.5
    assert interval.mean == pytest.approx(float(values.mean()))
    assert interval.low == pytest.approx(interval.mean - half, abs=0.15 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.15 * half)
    assert interval.std == pytest.approx(float(values.std()))
    assert interval.spread() == {"ci95_low": interval.low, "ci95_high": interval.high}


def test_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    hits = 0
    for seed in range(200):
        interval = mean_ci95(normal(60, seed=seed), seed=seed, replicates=300)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 * 200 <= hits <= 0.99 * 200


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = normal(33)
    assert mean_ci95(values, 3) == mean_ci95(values, 3)
    assert mean_ci95(values, 3) != mean_ci95(values, 4)


def test_one_value_has_no_spread() -> None:
    assert mean_ci95(torch.tensor([2.5]), 0) == (2.5, 2.5, 2.5, 0.0)


def test_groups_widen_the_interval_of_repeated_values() -> None:
    values = normal(30).repeat_interleave(20)  # 30 trajectories of 20 equal steps
    groups = torch.arange(30).repeat_interleave(20)
    alone, grouped = mean_ci95(values, 0), mean_ci95(values, 0, groups=groups)
    assert grouped.mean == alone.mean
    assert 3 < (grouped.high - grouped.low) / (alone.high - alone.low) < 6  # sqrt(20) = 4.5


def test_groups_of_unequal_size_and_arbitrary_names_keep_the_plain_mean() -> None:
    values, groups = normal(31), torch.tensor([7] * 1 + [-2] * 10 + [900] * 20)
    interval = mean_ci95(values, 0, groups=groups)
    assert interval.mean == pytest.approx(float(values.mean()))
    assert interval.low <= interval.mean <= interval.high


def test_pairs_cancel_what_they_share() -> None:
    shared = normal(200) * 100
    interval = paired_difference_ci95(shared + 0.5, shared, seed=0)
    assert interval.mean == pytest.approx(0.5)
    assert interval.high - interval.low < 1e-9


def test_paired_values_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="differ in shape"):
        paired_difference_ci95(torch.zeros(3), torch.zeros(4), 0)


def test_resamples_come_in_bounded_pieces_and_cover_all_replicates() -> None:
    pieces = list(resamples(300_001, 31, seed=1))
    assert len(pieces) > 1
    assert sum(len(piece) for piece in pieces) == 31
    assert all(piece.shape[1] == 300_001 and piece.min() >= 0 and piece.max() < 300_001 for piece in pieces)


def test_nothing_to_average_is_an_input_error() -> None:
    with pytest.raises(InputError, match="3 values came with 2 group numbers"):
        mean_ci95(torch.zeros(3), 0, groups=torch.zeros(2))
    with pytest.raises(InputError, match="no values"):
        mean_ci95(torch.zeros(0), 0)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(RunError, match="overflowed"):
        mean_ci95(torch.tensor([1.0, float("nan")]), 0)
