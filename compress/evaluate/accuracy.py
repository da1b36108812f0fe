"""Class accuracy of generated images: how often a classifier names the class that was asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.bootstrap import Interval, paired_difference_ci95
from compress.evaluate.finite import require_finite_items
from compress.report.model import Artefact, Metric

_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> Interval:
    """Fraction successes / n with Wilson's 95 % score interval (Wilson 1927), which stays inside [0, 1]."""
    if not 0 <= successes <= n or n == 0:
        raise InputError(f"{successes} successes of {n} trials is no fraction")
    p, z2 = successes / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), math.sqrt(p * (1 - p)))


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is the label, `[n]` bool, of logits `[n, classes]` and labels `[n]`.

    Raises:
        RunError: a logit is NaN or infinite; the image that caused it must not count as one class or another.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not belong together")
    require_finite_items(logits, "logits of generated images")
    return logits.argmax(dim=1) == labels.to(logits.device)


def class_accuracy(logits: Tensor, labels: Tensor, *, artefact: Artefact, seed: int | None = None) -> Metric:
    """`class_accuracy`: fraction of images given their class, with Wilson's interval.

    Args:
        seed: that of the noise the images were sampled from; nothing is drawn here.
    """
    hits = correct(logits, labels)
    interval = wilson_interval(int(hits.sum()), len(hits))
    return _metric("class_accuracy", interval, len(hits), artefact, seed)


def class_accuracy_by_class(
    logits: Tensor, labels: Tensor, *, artefact: Artefact, seed: int | None = None
) -> list[Metric]:
    """`class_accuracy` of each class that was asked for, labelled `category`."""
    hits, found = correct(logits, labels), []
    for label in torch.unique(labels).tolist():
        inside = hits[labels == label]
        metric = _metric("class_accuracy", wilson_interval(int(inside.sum()), len(inside)), len(inside), artefact, seed)
        found.append(metric.model_copy(update={"labels": {"category": str(label)}}))
    return found


def class_accuracy_drop(
    reference_logits: Tensor, logits: Tensor, labels: Tensor, *, artefact: Artefact, seed: int = 0
) -> Metric:
    """`class_accuracy_drop`: accuracy of the full-precision model minus that of the compressed one, paired.

    Image i of both comes from the same noise and label, so pairs are resampled and images both get right cancel.
    """
    before, after = correct(reference_logits, labels), correct(logits, labels)
    interval = paired_difference_ci95(before.double(), after.double(), seed)
    return _metric("class_accuracy_drop", interval, len(labels), artefact, seed)


def _metric(name: str, interval: Interval, n: int, artefact: Artefact, seed: int | None) -> Metric:
    return Metric(name=name, value=interval.mean, n=n, seed=seed, spread=interval.spread(), artefact=artefact)
