from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from calibration_fakes import VP_CONFIG
from pydantic import TypeAdapter

from compress.calibration.policies import (
    AllTimesteps,
    BandTimesteps,
    NormalTimesteps,
    TimestepPolicy,
    UniformTimesteps,
)
from compress.errors import RecipeError
from compress.models.noise import NoiseSchedule

T = 1000
CALLS = [float(t) for t in range(950, -1, -50)]  # DDIM with 20 steps
SIGMAS = NoiseSchedule.from_scheduler_config(VP_CONFIG).sigma(torch.tensor(CALLS)).tolist()


def test_settings_are_told_apart_by_kind() -> None:
    parse = TypeAdapter(TimestepPolicy).validate_python
    assert parse({"kind": "uniform", "count": 5}) == UniformTimesteps(count=5)
    assert parse({"kind": "normal", "mean": 0.4, "std": 0.4}) == NormalTimesteps()
    assert parse({"kind": "all"}) == AllTimesteps()
    assert parse({"kind": "bands", "edges": [0.5, 2]}) == BandTimesteps(edges=(0.5, 2.0))
    with pytest.raises(ValueError, match="ascending"):
        parse({"kind": "bands", "edges": [2.0, 0.5]})
    with pytest.raises(ValueError, match="positive"):
        parse({"kind": "bands", "edges": [0.0, 0.5]})


@pytest.mark.parametrize("count", [1, 2, 7, 19, 20, 401])
def test_uniform_is_evenly_spread(count: int) -> None:
    chosen = UniformTimesteps(count=count).choose(CALLS, SIGMAS, T, 0)
    assert len(chosen) == min(count, 20)
    gaps = [b - a for a, b in pairwise(chosen)]
    assert all(gap >= 1 for gap in gaps)
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, 19)
        assert max(gaps) - min(gaps) <= 1
    else:
        assert chosen == [10]


def test_all_takes_every_call_even_of_repeated_timesteps() -> None:
    assert AllTimesteps().choose([9.0, 5.0, 5.0], [3.0, 1.0, 1.0], T, 0) == [0, 1, 2]


def test_normal_follows_the_clamped_normal_distribution() -> None:
    policy = NormalTimesteps(mean=0.4, std=0.4, count=20_000)
    calls = [float(t) for t in range(999, -1, -1)]
    chosen = torch.tensor(policy.choose(calls, [1.0] * 1000, T, 3))
    t = 999.0 - chosen
    normal = NormalDist(400.0, 400.0)
    for low in (0.0, 100.0, 300.0, 500.0, 800.0):
        expected = normal.cdf(low + 1)
        assert float((t <= low).float().mean()) == pytest.approx(expected, abs=0.015)
    # Mass at both clamped ends: everything below 0 and everything beyond T.
    assert float((t == 0).float().mean()) == pytest.approx(0.159, abs=0.015)
    assert float((t == 999).float().mean()) == pytest.approx(0.067, abs=0.015)


def test_normal_prefers_the_clean_end_and_depends_on_the_seed_alone() -> None:
    policy = NormalTimesteps(mean=0.1, std=0.05, count=33)
    chosen = policy.choose(CALLS, SIGMAS, T, 5)
    assert chosen == policy.choose(CALLS, SIGMAS, T, 5)
    assert chosen != policy.choose(CALLS, SIGMAS, T, 6)
    assert chosen == sorted(chosen)
    assert len(chosen) == 33
    assert all(CALLS[i] <= 350 for i in chosen)
    assert NormalTimesteps(mean=0.5, std=0.0, count=2).choose(CALLS, SIGMAS, T, 0) == [9, 9]


def test_bands_get_equal_shares() -> None:
    policy = BandTimesteps(edges=(0.3, 1.5), count=2)
    chosen = policy.choose(CALLS, SIGMAS, T, 0)
    bands = [sum(SIGMAS[i] >= edge for edge in policy.edges) for i in chosen]
    assert bands == [2, 2, 1, 1, 0, 0]
    assert chosen == sorted(set(chosen))
    infinite = [float("inf"), *SIGMAS[1:]]
    assert 0 in policy.choose(CALLS, infinite, T, 0)
    everything = BandTimesteps(edges=(0.3, 1.5), count=401).choose(CALLS, SIGMAS, T, 0)
    assert everything == list(range(20))


def test_an_empty_band_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"no model call .* \[1e\+06, inf\).*levels run from"):
        BandTimesteps(edges=(1.0, 1e6)).choose(CALLS, SIGMAS, T, 0)
