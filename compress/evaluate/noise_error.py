"""Mean squared error of the predicted noise against the full-precision model on the same inputs, per noise band."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.bootstrap import mean_ci95
from compress.evaluate.finite import require_finite_items
from compress.report.model import Artefact, Metric


def squared_errors(reference_eps: Tensor, eps: Tensor) -> Tensor:
    """Mean squared difference of each pair, `[n]` float64, of noise predictions `[n, ...]`."""
    if reference_eps.shape != eps.shape or reference_eps.dim() < 2:
        shapes = f"{tuple(reference_eps.shape)} and {tuple(eps.shape)}"
        raise InputError(f"noise predictions must be [n, ...] of one shape, got {shapes}")
    require_finite_items(reference_eps, "noise predictions of the reference model")
    require_finite_items(eps, "noise predictions of the compressed model")
    return (reference_eps.double() - eps.double()).square().flatten(1).mean(dim=1)


def noise_bands(sigma: Tensor, bands: int) -> Tensor:
    """Band `[n]` int64 of every noise level `[n]`, 0 the lowest: equal counts, but equal levels never part.

    With fewer distinct levels than bands there are fewer bands; their numbers stay consecutive.
    """
    if bands < 1:
        raise InputError(f"the number of noise bands must be at least 1, got {bands}")
    sigma = sigma.detach().flatten().double().cpu()
    ordered = sigma.sort().values
    first_rank = torch.searchsorted(ordered, sigma)  # ties share the rank of their first
    raw = first_rank * bands // max(1, len(sigma))
    band: Tensor = torch.unique(raw, return_inverse=True)[1]
    return band


def noise_error(
    reference_eps: Tensor,
    eps: Tensor,
    sigma: Tensor,
    *,
    artefact: Artefact,
    bands: int = 8,
    seed: int = 0,
    groups: Tensor | None = None,
) -> list[Metric]:
    """The overall `noise_error` (no labels) and one per noise band (labels band, sigma_low, sigma_high).

    Both predictions must already be epsilon. Noise has unit variance, so the value reads as a fraction of its energy.

    Args:
        reference_eps, eps: `[n, ...]` of the full-precision and the compressed model on identical inputs.
        sigma: `[n]` noise levels; infinity (a flow model at pure noise) is allowed.
        groups: `[n]` trajectory of each pair; the intervals then resample whole trajectories.
    """
    errors = squared_errors(reference_eps, eps)
    sigma = sigma.detach().flatten().double().cpu()
    if len(sigma) != len(errors):
        raise InputError(f"{len(errors)} predictions came with {len(sigma)} noise levels")
    band_of = noise_bands(sigma, bands)
    metrics = [_metric(errors, groups, artefact, seed, {})]
    for band in range(int(band_of.max()) + 1):
        mask = band_of == band
        inside = sigma[mask]
        labels = {"band": str(band), "sigma_low": f"{inside.min():.6g}", "sigma_high": f"{inside.max():.6g}"}
        metrics.append(_metric(errors[mask], None if groups is None else groups[mask], artefact, seed, labels))
    return metrics


def _metric(errors: Tensor, groups: Tensor | None, artefact: Artefact, seed: int, labels: dict[str, str]) -> Metric:
    interval = mean_ci95(errors, seed, groups=groups)
    return Metric(
        name="noise_error",
        value=interval.mean,
        n=len(errors),
        seed=seed,
        spread=interval.spread(),
        artefact=artefact,
        labels=labels,
    )
