import math

import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.frechet import distance, frechet_distance, frechet_floor, frechet_increase
from compress.models.zoo.classifier import FeatureStatistics, feature_statistics


def features(n: int, dims: int = 6, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(dims, dtype=torch.float64) + torch.ones(dims, dims, dtype=torch.float64) * 0.3
    return torch.randn(n, dims, generator=generator, dtype=torch.float64) @ mix * scale + shift


def diagonal(mean: list[float], variance: list[float]) -> FeatureStatistics:
    return FeatureStatistics(torch.tensor(mean).double(), torch.tensor(variance).double().diag(), 100)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a, b = diagonal([0, 1], [4, 9]), diagonal([3, 1], [1, 25])
    assert distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert distance(b, a) == pytest.approx(distance(a, b))


def test_the_trace_equals_that_of_a_general_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = feature_statistics(features(50)), feature_statistics(features(60, seed=1, scale=1.7))
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root.trace().real
    assert distance(a, b) == pytest.approx(float(expected), rel=1e-8)


def test_identical_statistics_are_at_distance_zero_even_when_singular() -> None:
    few = feature_statistics(features(4, dims=31))  # rank 3 of 31
    assert distance(few, few) == pytest.approx(0, abs=1e-9)
    dead = diagonal([0, 0, 0], [0, 0, 0])
    assert distance(dead, dead) == 0


def test_moments_are_the_usual_ones() -> None:
    x = features(33)
    statistics = feature_statistics(x.float())
    torch.testing.assert_close(statistics.covariance, torch.cov(x.T), rtol=1e-5, atol=1e-6)
    assert statistics.n == 33 and statistics.mean.dtype == torch.float64


def test_distance_has_its_value_and_an_interval_around_it() -> None:
    reference = feature_statistics(features(2000, seed=5))
    metric = frechet_distance(features(401, shift=0.5), reference, artefact="checkpoint", seed=3)
    assert metric.value == distance(feature_statistics(features(401, shift=0.5)), reference)
    assert metric.spread["ci95_low"] < metric.value < metric.spread["ci95_high"]
    assert (metric.name, metric.n, metric.seed) == ("frechet_distance", 401, 3)
    assert metric == frechet_distance(features(401, shift=0.5), reference, artefact="checkpoint", seed=3)


def test_fewer_images_score_higher() -> None:
    reference = feature_statistics(features(5000, seed=5))
    real = features(2000, seed=6)
    floors = [frechet_floor(real, reference, n) for n in (20, 200, 2000)]
    assert floors[0] > 5 * floors[1] > 0
    assert floors[1] > 3 * floors[2] > 0


def test_increase_is_the_difference_and_pairs_narrow_its_interval() -> None:
    reference = feature_statistics(features(2000, seed=5))
    before, after = features(300), features(300) + 0.3
    metric = frechet_increase(before, after, reference, artefact="onnx")
    alone = [frechet_distance(x, reference, artefact="onnx") for x in (before, after)]
    assert metric.value == pytest.approx(alone[1].value - alone[0].value)
    unpaired = math.hypot(*(m.spread["bootstrap_std"] for m in alone))
    assert metric.spread["bootstrap_std"] < unpaired
    same = frechet_increase(before, before, reference, artefact="onnx")
    assert (same.value, same.spread["bootstrap_std"]) == (0, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    reference = feature_statistics(features(10))
    with pytest.raises(InputError, match="dimensions"):
        distance(reference, feature_statistics(features(10, dims=7)))
    with pytest.raises(InputError, match="at least two"):
        feature_statistics(features(1))
    with pytest.raises(InputError, match="one shape"):
        frechet_increase(features(3), features(4), reference, artefact="onnx")
    with pytest.raises(InputError, match="floor at n = 11"):
        frechet_floor(features(10), reference, 11)
    with pytest.raises(InputError, match="replicates"):
        frechet_distance(features(10), reference, artefact="onnx", replicates=1)


def test_broken_features_are_counted_in_the_error() -> None:
    broken = features(5)
    broken[2, 1] = math.nan
    with pytest.raises(RunError, match="1 of 5"):
        frechet_distance(broken, feature_statistics(features(10)), artefact="onnx")
