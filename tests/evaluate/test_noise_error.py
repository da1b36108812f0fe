import math

import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.noise_error import noise_bands, noise_error, squared_errors


def predictions(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_overall_value_is_the_mean_squared_error() -> None:
    a, b = predictions(31), predictions(31, seed=1)
    overall = noise_error(a, b, torch.linspace(0.1, 10, 31), artefact="checkpoint")[0]
    assert overall.value == pytest.approx(float((a - b).square().mean()), rel=1e-6)
    assert (overall.name, overall.n, overall.seed, overall.labels) == ("noise_error", 31, 0, {})
    assert overall.spread["ci95_low"] < overall.value < overall.spread["ci95_high"]


def test_bands_have_equal_counts_in_order_of_sigma() -> None:
    sigma = torch.randperm(401, generator=torch.Generator().manual_seed(0)).double() + 1
    a = predictions(401)
    scale = (sigma / 401).sqrt().float()[:, None, None, None]
    metrics = noise_error(a, a + scale, sigma, artefact="onnx")[1:]
    assert [m.labels["band"] for m in metrics] == [str(k) for k in range(8)]
    assert {m.n for m in metrics} <= {50, 51}
    assert sum(m.n for m in metrics) == 401
    values = [m.value for m in metrics]
    assert values == sorted(values)
    lows = [float(m.labels["sigma_low"]) for m in metrics]
    highs = [float(m.labels["sigma_high"]) for m in metrics]
    assert lows[0] == 1 and highs[-1] == 401
    assert all(high < low for high, low in zip(highs, lows[1:], strict=False))


def test_bands_average_to_the_overall_value() -> None:
    a, b = predictions(33), predictions(33, seed=1)
    overall, *bands = noise_error(a, b, torch.rand(33), artefact="checkpoint", bands=4)
    assert sum(m.value * m.n for m in bands) / 33 == pytest.approx(overall.value)


def test_equal_noise_levels_stay_in_one_band() -> None:
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0]).repeat(16)
    band = noise_bands(sigma, 8)
    assert sorted(set(band.tolist())) == [0, 1, 2, 3]
    assert all(len(set(band[sigma == level].tolist())) == 1 for level in (0.5, 1.0, 2.0, 4.0))


def test_twenty_steps_in_eight_bands() -> None:
    sigma = torch.arange(1, 21).double().repeat(7)
    counts = torch.bincount(noise_bands(sigma, 8))
    assert len(counts) == 8
    assert set(counts.tolist()) == {14, 21}


def test_one_pair_and_infinite_noise() -> None:
    metrics = noise_error(predictions(1), predictions(1), torch.tensor([math.inf]), artefact="checkpoint")
    assert [m.value for m in metrics] == [0.0, 0.0]
    assert metrics[1].labels == {"band": "0", "sigma_low": "inf", "sigma_high": "inf"}
    metrics[1].model_dump_json()


def test_trajectories_are_resampled_whole() -> None:
    a = predictions(20).repeat_interleave(10, dim=0)
    sigma, groups = torch.linspace(0, 1, 200), torch.arange(20).repeat_interleave(10)
    loose = noise_error(a, a * 0.5, sigma, artefact="checkpoint", groups=groups)[0].spread
    tight = noise_error(a, a * 0.5, sigma, artefact="checkpoint")[0].spread
    assert loose["ci95_high"] - loose["ci95_low"] > 1.5 * (tight["ci95_high"] - tight["ci95_low"])


def test_errors_are_per_pair() -> None:
    a = torch.zeros(3, 1, 2, 2)
    b = a.clone()
    b[1, 0, 0, 0] = 2
    assert squared_errors(a, b).tolist() == [0, 1, 0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        noise_error(predictions(3), predictions(4), torch.ones(3), artefact="checkpoint")
    with pytest.raises(InputError, match="noise levels"):
        noise_error(predictions(3), predictions(3), torch.ones(4), artefact="checkpoint")
    with pytest.raises(InputError, match="at least 1"):
        noise_error(predictions(3), predictions(3), torch.ones(3), artefact="checkpoint", bands=0)


def test_a_prediction_that_overflowed_stops_the_evaluation() -> None:
    broken = predictions(4)
    broken[2, 0, 0, 0] = math.nan
    with pytest.raises(RunError, match="1 of 4 noise predictions of the compressed"):
        noise_error(predictions(4), broken, torch.ones(4), artefact="checkpoint")
