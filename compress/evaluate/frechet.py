"""Fréchet distance between Gaussians fitted to features (Dowson and Landau 1982; for images, Heusel et al. 2017).

The estimate is biased upwards by an amount that falls like 1/n (Chong and Forsyth 2020): compare values at equal n
only, and read them beside `frechet_floor`, what real images score at that n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.bootstrap import resamples
from compress.evaluate.finite import require_finite, require_finite_items
from compress.models.zoo.classifier import FeatureStatistics, feature_statistics
from compress.report.model import Artefact, Metric

REPLICATES = 30
_Z95 = 1.96


def distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), float64, never negative.

    The trace of the square root of the product is the nuclear norm of S_a^(1/2) S_b^(1/2): symmetric roots and
    singular values, which stay real and exact for singular covariances, where a general matrix root does not.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of {a.mean.numel()} and {b.mean.numel()} dimensions cannot be compared")
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return require_finite(max(0.0, float(value)), "a Fréchet distance")


def frechet_distance(
    features: Tensor, reference: FeatureStatistics, *, artefact: Artefact, seed: int = 0, replicates: int = REPLICATES
) -> Metric:
    """`frechet_distance` of generated features `[n, d]` from the reference statistics.

    Spread: the standard deviation over bootstrap replicates of the generated images, and value +- 1.96 of it.
    Replicates repeat images and so lie above the value; their quantiles would not be an interval around it.
    """
    values = _replicate_distances(features, reference, seed, replicates)
    value = distance(feature_statistics(features), reference)
    return _metric("frechet_distance", value, values, len(features), artefact, seed)


def frechet_increase(
    reference_features: Tensor,
    features: Tensor,
    reference: FeatureStatistics,
    *,
    artefact: Artefact,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Metric:
    """Distance of the compressed model minus that of the full-precision one, from the same noise and conditions.

    Both sides are resampled with the same indices, so what the pairs share cancels from the spread, and the bias
    largely from the value.
    """
    if reference_features.shape != features.shape:
        raise InputError("paired features must have one shape", hint="generate both sets from the same noise")
    before = _replicate_distances(reference_features, reference, seed, replicates)
    after = _replicate_distances(features, reference, seed, replicates)
    value = distance(feature_statistics(features), reference) - distance(
        feature_statistics(reference_features), reference
    )
    return _metric("frechet_increase", value, after - before, len(features), artefact, seed)


def frechet_floor(real_features: Tensor, reference: FeatureStatistics, n: int, seed: int = 0, draws: int = 10) -> float:
    """Mean distance of n real images from the reference statistics: what a perfect model would score at this n.

    Raises:
        InputError: fewer than n real feature vectors are at hand, or n is below 2.
    """
    if not 2 <= n <= len(real_features):
        raise InputError(f"the floor at n = {n} needs 2 to {len(real_features)} images, those with stored features")
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(len(real_features), generator=generator)[:n] for _ in range(draws)]
    return sum(distance(feature_statistics(real_features[pick]), reference) for pick in picks) / draws


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance.double())
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _replicate_distances(features: Tensor, reference: FeatureStatistics, seed: int, replicates: int) -> Tensor:
    if replicates < 2:
        raise InputError(f"a spread needs at least two bootstrap replicates, got {replicates}")
    require_finite_items(features, "feature vectors of generated images")
    values = [
        distance(feature_statistics(features[pick]), reference)
        for picks in resamples(len(features), replicates, seed)
        for pick in picks
    ]
    return torch.tensor(values, dtype=torch.float64)


def _metric(name: str, value: float, replicates: Tensor, n: int, artefact: Artefact, seed: int) -> Metric:
    std = float(replicates.std())
    spread = {"bootstrap_std": std, "ci95_low": value - _Z95 * std, "ci95_high": value + _Z95 * std}
    return Metric(name=name, value=value, n=n, seed=seed, spread=spread, artefact=artefact)
