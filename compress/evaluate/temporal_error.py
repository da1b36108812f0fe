"""How far quantization moves what the blocks are told of timestep and class, and whether each t stays itself.

A quantized embedding that resembles another timestep's makes the model denoise by the wrong amount, which TFMQ-DM calls
temporal feature disturbance (Huang et al. 2024, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.finite import require_finite_items
from compress.report.model import Artefact, Metric

Projections = Mapping[str, Tensor]
"""What each projecting layer gives for every timestep (in order) and class: `[timesteps, classes, channels]`."""


def temporal_errors(reference: Projections, compressed: Projections) -> Tensor:
    """Relative squared error of every (timestep, class), `[timesteps, classes]` float64, averaged over the layers.

    Each layer's squared error is divided by the layer's mean energy over all pairs, so that layers count alike whatever
    their channels and size. Layers that give nothing but zeros in both models have no error to average.

    Raises:
        InputError: layers or shapes differ, or no layer gives anything. RunError: a value is not finite.
    """
    _check(reference, compressed)
    errors = []
    for name, before in reference.items():
        after = compressed[name].double()
        energy = before.double().square().sum(-1).mean()
        error = (after - before.double()).square().sum(-1)  # [timesteps, classes]
        if energy == 0 and not error.any():
            continue
        if energy == 0:
            raise InputError(f"`{name}` gives zeros in full precision only: its relative error is not defined")
        errors.append(error / energy)
    if not errors:
        raise InputError("every projection of timestep and class gives zeros")
    return torch.stack(errors).mean(0)


def nearest_timesteps(reference: Projections, compressed: Projections) -> Tensor:
    """Number of the timestep whose full-precision projections are most alike, `[timesteps, classes]` int64.

    Alike by cosine over all layers together, among the projections of the same class. Of equals the first counts.

    Raises:
        InputError: layers or shapes differ. RunError: a value is not finite.
    """
    _check(reference, compressed)
    classes = next(iter(reference.values())).shape[1]
    found = []
    for number in range(classes):
        before, after = (
            torch.cat([projections[name][:, number].double() for name in reference], dim=1)
            for projections in (reference, compressed)
        )
        alike = torch.nn.functional.normalize(after, dim=1) @ torch.nn.functional.normalize(before, dim=1).T
        found.append(alike.argmax(1))
    return torch.stack(found, dim=1)


def temporal_error(reference: Projections, compressed: Projections, *, artefact: Artefact) -> list[Metric]:
    """`temporal_error`, the mean over all pairs, and how many of them stay nearest to their own timestep.

    The latter are labelled `of: nearest_neighbour_identity`, as fractions: exactly, and `within` one step of the
    sampler. The pairs are all there are, so nothing is estimated and there is no spread.
    """
    errors, nearest = temporal_errors(reference, compressed), nearest_timesteps(reference, compressed)
    away = (nearest - torch.arange(len(nearest))[:, None]).abs()
    identity = {"of": "nearest_neighbour_identity", "within": "0"}
    return [
        _metric(float(errors.mean()), errors, artefact, {}),
        _metric(float((away == 0).double().mean()), errors, artefact, identity),
        _metric(float((away <= 1).double().mean()), errors, artefact, {**identity, "within": "1"}),
    ]


def _metric(value: float, errors: Tensor, artefact: Artefact, labels: dict[str, str]) -> Metric:
    return Metric(name="temporal_error", value=value, n=errors.numel(), artefact=artefact, labels=labels)


def _check(reference: Projections, compressed: Projections) -> None:
    if not reference or list(reference) != list(compressed):
        raise InputError("the two models' projections of timestep and class are not the same layers")
    for name, before in reference.items():
        if before.dim() != 3 or before.shape != compressed[name].shape:
            shapes = f"{tuple(before.shape)} and {tuple(compressed[name].shape)}"
            raise InputError(
                f"projections must be [timesteps, classes, channels] of one shape, got {shapes}", where=name
            )
        require_finite_items(before, f"timesteps in `{name}` of the reference model")
        require_finite_items(compressed[name], f"timesteps in `{name}` of the compressed model")
