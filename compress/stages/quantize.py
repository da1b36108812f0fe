"""The quantize stage: packed weights, and activation formats, layer by layer."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field
from torch import nn

from compress.checkpoint.component import write_quantized_component
from compress.config import Config
from compress.models.adapter import LayerInfo
from compress.models.source import component_folder, read_tensors
from compress.quantize.job import QuantizeJob
from compress.quantize.methods import METHODS, MethodSettings
from compress.quantize.methods.nearest import Nearest
from compress.quantize.modules import swap_layers
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment, assign
from compress.quantize.settings import ActivationSettings, Rule, WeightSettings
from compress.quantize.spec import LayerSpec
from compress.quantize.statistics import static_assignments, static_scales
from compress.stages.base import RunContext, StageKind, StageResult, register_stage


class Quantize(Config):
    """Give the denoiser's weights, and its layers' inputs, fewer bits."""

    kind: Literal["quantize"] = "quantize"
    component: Literal["denoiser"] = "denoiser"
    method: MethodSettings = Field(Nearest(), description="How codes are chosen; `compress methods` lists them.")
    weights: WeightSettings
    activations: ActivationSettings = ActivationSettings()
    rules: tuple[Rule, ...] = Field((), description="Exceptions, applied in order; the last match wins.")


def assignments_for(settings: Quantize, layers: list[LayerInfo], skeleton: nn.Module) -> list[Assignment]:
    """Formats of every layer; the skeleton is changed, which proves that each layer can be packed.

    Raises:
        RecipeError: a rule matches nothing. UnsupportedLayer: a layer cannot be packed.
    """
    assignments = assign(layers, settings.weights, settings.activations, settings.rules)
    swap_layers(skeleton, specs_of(assignments))
    return assignments


def specs_of(assignments: list[Assignment]) -> dict[str, LayerSpec]:
    """Formats by name of the layers that are quantized."""
    return {a.info.name: a.spec for a in assignments if a.spec is not None}


def needs_trajectory(settings: Quantize) -> bool:
    """Whether any layer could have a static input."""
    choices = [settings.activations, *(rule.activations for rule in settings.rules)]
    return any(c is not None and c.format != "none" and c.mode == "static" for c in choices)


def run(settings: Quantize, context: RunContext) -> StageResult:
    """Quantize the context's component into its folder."""
    adapter = context.adapter
    skeleton = adapter.skeleton()
    assignments = assignments_for(settings, adapter.layers(skeleton), skeleton)
    scales = _static_scales(assignments, context)
    chosen = tuple(a for a in assignments if a.spec is not None)
    context.progress.start(f"quantize ({settings.method.kind})", len(chosen))
    with read_tensors(component_folder(adapter.source)) as reader:
        job = QuantizeJob(
            assignments=chosen,
            read=lambda name: reader.get(name).float(),
            static_scales=scales,
            seed=context.seed,
            tick=lambda name: context.progress.advance(),
        )
        write_quantized_component(
            reader,
            adapter.source.config,
            specs_of(assignments),
            [a.info.name for a in assignments if a.spec is None],
            METHODS[settings.method.kind].run(settings.method, job),
            scales,
            context.folder,
        )
    return StageResult(_facts(settings, assignments))


def _static_scales(assignments: list[Assignment], context: RunContext) -> dict[str, StaticScale]:
    if not static_assignments(assignments):
        return {}
    trajectory, model = context.trajectory(), context.adapter.load(device=context.device)
    context.progress.start("activation statistics", len(trajectory))
    return static_scales(context.adapter, model, trajectory, assignments, context.progress.reach)


def _facts(settings: Quantize, assignments: list[Assignment]) -> dict[str, str | float | int | None]:
    formats = Counter("kept" if a.spec is None else a.spec.summary() for a in assignments)
    return {"method": settings.method.kind, **{f"layers {name}": count for name, count in formats.items()}}


register_stage(StageKind(Quantize, run, needs_trajectory))
