"""Kernel distance of features: the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.finite import require_finite
from compress.report.model import Artefact, Metric

SUBSETS, SUBSET_SIZE = 50, 500


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared MMD of features `[m, d]` and `[n, d]` under k(a, b) = (a.b / d + 1)^3.

    Around zero, hence also below it, when both come from one distribution. Raises InputError below two vectors a side.
    """
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features of {x.shape[1]} and {y.shape[1]} dimensions cannot be compared")
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise InputError(f"a kernel distance needs at least two feature vectors a side, got {m} and {n}")
    x, y = x.double(), y.double()
    within_x, within_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    # The diagonal is k(a, a): a vector is no second draw beside itself.
    term_x = (within_x.sum() - within_x.trace()) / (m * (m - 1))
    term_y = (within_y.sum() - within_y.trace()) / (n * (n - 1))
    return require_finite(float(term_x + term_y - 2 * across.mean()), "a kernel distance")


def kid(
    features: Tensor,
    reference_features: Tensor,
    *,
    artefact: Artefact,
    seed: int = 0,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> Metric:
    """`kid`: mean squared MMD over random subsets of generated and real features, with the spread over subsets.

    Unlike the Fréchet distance it has no bias in n. A subset holds at most half of the smaller side, so that subsets
    differ. `std` is over subsets; these overlap, so it is not a standard error of the value.
    """
    size = min(subset_size, max(2, min(len(features), len(reference_features)) // 2))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        left = torch.randperm(len(features), generator=generator)[:size]
        right = torch.randperm(len(reference_features), generator=generator)[:size]
        values.append(squared_mmd(features[left], reference_features[right]))
    found = torch.tensor(values, dtype=torch.float64)
    spread = {"std": float(found.std()) if subsets > 1 else 0.0, "subset_size": float(size), "subsets": float(subsets)}
    return Metric(name="kid", value=float(found.mean()), n=len(features), seed=seed, spread=spread, artefact=artefact)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
