"""The `temporal_error` entry."""

from __future__ import annotations

from torch import Tensor

from compress.calibration.sampler import call_timesteps, make_scheduler
from compress.errors import ModelError, RecipeError
from compress.evaluate.temporal_error import nearest_timesteps, temporal_error, temporal_errors
from compress.models.adapter import Adapter
from compress.models.conditioning import ConditioningGrid, capture_projections, conditioning_grid, projection_layers
from compress.report.model import Table
from compress.stages.evaluate.base import EvaluationContext, Findings, Subject
from compress.stages.evaluate.settings import TemporalError


def conditioning_names(adapter: Adapter) -> list[str]:
    """Names of the layers that `temporal_error` looks at; for the plan, before any work.

    Raises:
        RecipeError: the family does not know what depends on timestep and class alone, or nothing projects it.
    """
    try:
        conditioning_grid(adapter, ())
        names = [layer.name for layer in projection_layers(adapter, adapter.skeleton())]
    except ModelError as error:
        raise RecipeError(f"`temporal_error` does not suit this model: {error.message}") from error
    if not names:
        raise RecipeError("`temporal_error` does not suit this model: no layer projects timestep and class")
    return names


def run(settings: TemporalError, context: EvaluationContext) -> Findings:
    """Error of each torch artefact's projected embeddings at every timestep of the sampler, for every class asked for.

    An ONNX file has no layers to look into; parity says how near it is to its checkpoint.
    """
    timesteps = call_timesteps(make_scheduler(context.sampler, context.scheduler_config), context.sampler)
    grid = conditioning_grid(context.adapter, timesteps, settings.classes)
    reference = _projections(context, context.subjects["reference"], grid)
    findings = Findings()
    for artefact in context.compressed():
        if context.subjects[artefact].load is None:
            continue
        found = _projections(context, context.subjects[artefact], grid)
        findings.metrics += temporal_error(reference, found, artefact=artefact)
        errors, nearest = temporal_errors(reference, found), nearest_timesteps(reference, found)
        findings.tables.append(_by_timestep(artefact, grid, errors, nearest))
    return findings


def _projections(context: EvaluationContext, subject: Subject, grid: ConditioningGrid) -> dict[str, Tensor]:
    assert subject.load is not None
    names = conditioning_names(context.adapter)
    return capture_projections(context.adapter, subject.load(), grid, names)


def _by_timestep(artefact: str, grid: ConditioningGrid, errors: Tensor, nearest: Tensor) -> Table:
    """One row a timestep, the noisiest first as in sampling."""
    rows: list[list[str | float | int | None]] = []
    for number in reversed(range(len(grid.timesteps))):
        others = sorted({grid.timesteps[found] for found in nearest[number].tolist()} - {grid.timesteps[number]})
        taken = ", ".join(f"{t:g}" for t in others) or "none"
        rows.append([f"{grid.timesteps[number]:g}", float(f"{errors[number].mean():.4g}"), taken])
    return Table(
        title=f"Temporal error of {artefact}",
        columns=["t", "temporal_error", "taken for"],
        rows=rows,
        note=f"Mean over {grid.classes} classes; `taken for`: timesteps whose true embedding is nearer for some class.",
    )
