from __future__ import annotations

from collections import Counter, defaultdict
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
    RandomTimesteps,
    SingleTimestep,
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
    assert parse({"kind": "normal", "pairing": "compat"}) == NormalTimesteps(pairing="compat")
    assert parse({"kind": "random", "count": 3}) == RandomTimesteps(count=3)
    assert parse({"kind": "single", "at": 0.25}) == SingleTimestep(at=0.25)
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


def test_normal_histogram_passes_a_chi_square_test() -> None:
    """Every call is drawn as often as the clamped normal distribution has mass nearest to it."""
    draws, normal = 20_000, NormalDist(400.0, 400.0)
    mass = [normal.cdf(t + 1) - normal.cdf(t) for t in range(T + 1)]
    mass[0], mass[T] = normal.cdf(1), 1 - normal.cdf(T)
    expected: defaultdict[int, float] = defaultdict(float)
    for t, probability in enumerate(mass):
        nearest = int((torch.tensor(CALLS) - t).abs().argmin())
        expected[nearest] += draws * probability
    seen = Counter(NormalTimesteps(count=draws).choose(CALLS, SIGMAS, T, 11))
    chi_square = sum((seen[call] - count) ** 2 / count for call, count in expected.items())
    assert chi_square < 43.8  # the 99.9 % quantile of 19 degrees of freedom
    assert seen[19] > 3000  # both clamped ends
    assert seen[0] > 1400


def test_paper_pairing_feeds_the_calls_own_timesteps() -> None:
    policies = (NormalTimesteps(count=50), UniformTimesteps(count=7), AllTimesteps(), RandomTimesteps(count=4))
    for policy in (*policies, SingleTimestep(), BandTimesteps(edges=(0.5,))):
        chosen = policy.choose(CALLS, SIGMAS, T, 8)
        assert policy.fed_timesteps(CALLS, SIGMAS, T, 8) == [CALLS[i] for i in chosen]


def test_compat_pairing_takes_the_sample_of_the_mirrored_timestep() -> None:
    compat, paper = NormalTimesteps(count=400, pairing="compat"), NormalTimesteps(count=400)
    calls = [float(t) for t in range(1000, -1, -1)]  # a call at every timestep, so that nothing is rounded
    chosen, fed = compat.choose(calls, [], T, 4), compat.fed_timesteps(calls, [], T, 4)
    assert chosen == sorted(chosen)
    drawn = sorted(paper.fed_timesteps(calls, [], T, 4))
    assert sorted(fed) == [min(t, 999.0) for t in drawn]
    assert sorted(calls[i] for i in chosen) == [1000 - t for t in reversed(drawn)]
    for call, t in zip(chosen, fed, strict=True):
        assert calls[call] == 1000 - t or (calls[call] == 0 and t == 999)
    coarse = zip(compat.choose(CALLS, [], T, 4), compat.fed_timesteps(CALLS, [], T, 4), strict=True)
    assert all(abs(CALLS[call] - (1000 - t)) <= 25 or CALLS[call] == 950 for call, t in coarse)


def test_pairing_leaves_the_facts_of_older_trajectories_alone() -> None:
    assert NormalTimesteps().facts() == {"kind": "normal", "mean": 0.4, "std": 0.4, "count": 20}
    assert NormalTimesteps(pairing="compat").facts()["pairing"] == "compat"
    assert UniformTimesteps().facts() == {"kind": "uniform", "count": 20}


def test_random_is_a_subset_of_the_calls_each_equally_likely() -> None:
    policy = RandomTimesteps(count=5)
    draws = [policy.choose(CALLS, SIGMAS, T, seed) for seed in range(2000)]
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 5 for chosen in draws)
    counts = Counter(call for chosen in draws for call in chosen)
    assert len(counts) == 20
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 43.8
    assert RandomTimesteps(count=401).choose(CALLS, SIGMAS, T, 0) == list(range(20))
    assert policy.choose(CALLS, SIGMAS, T, 3) == policy.choose(CALLS, SIGMAS, T, 3)


def test_single_is_the_call_nearest_to_a_fraction() -> None:
    for at, expected in ((0.0, 0.0), (0.5, 500.0), (0.51, 500.0), (0.525, 550.0), (0.53, 550.0), (1.0, 950.0)):
        assert [CALLS[i] for i in SingleTimestep(at=at).choose(CALLS, SIGMAS, T, 0)] == [expected]


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
