"""The quantize stage: packed weights, and activation formats, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from compress.checkpoint.component import write_quantized_component
from compress.config import Config
from compress.models.adapter import Adapter
from compress.models.source import component_folder, read_tensors
from compress.quantize.attention import AttentionSettings, AttentionSpec, attention_spec, install_attention
from compress.quantize.attention_scales import attention_scales
from compress.quantize.cached_embeddings import (
    EmbeddingCache,
    embedding_tables,
    swap_embeddings,
    time_embeddings,
)
from compress.quantize.job import Calibration, QuantizeJob
from compress.quantize.methods import METHODS, MethodSettings
from compress.quantize.methods.nearest import Nearest
from compress.quantize.modules import swap_layers
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment, assign, split_layers
from compress.quantize.settings import ActivationSettings, Rule, Split, WeightSettings
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
    split: Split | None = Field(
        None,
        description="Layers on a concatenation with a skip that become two operators, each with scales of its own: the "
        "1x1 shortcuts, or all of them (concatenation); by default what the method does.",
    )
    attention: AttentionSettings | None = Field(
        None, description="Quantize the products inside attention too, with static scales; by default they are not."
    )
    rules: tuple[Rule, ...] = Field((), description="Exceptions, applied in order; the last match wins.")


@dataclass(frozen=True)
class ModelSurroundings:
    """What a method may ask before anything is loaded; see `quantize.job.Surroundings`."""

    adapter: Adapter
    skeleton: nn.Module
    calibrated: Callable[[], tuple[float, ...]]

    def conditioning(self) -> frozenset[str]:
        """Names of the layers whose input depends on timestep and class alone. Raises ModelError where unknown."""
        return frozenset(layer.name for layer in self.adapter.conditioning_layers(self.skeleton))

    def timesteps(self) -> tuple[float, ...]:
        """Ascending timesteps that the calibration trajectory visits."""
        return self.calibrated()


def assignments_for(
    settings: Quantize, adapter: Adapter, skeleton: nn.Module, timesteps: Callable[[], tuple[float, ...]]
) -> list[Assignment]:
    """Formats of every layer; the skeleton is changed, which proves that layers and attention can be quantized.

    Args:
        skeleton: of the adapter, on the meta device.
        timesteps: those that the calibration trajectory visits, ascending; asked only if a format or method needs them.

    Raises:
        RecipeError: a rule matches nothing, or the method cannot serve a format. UnsupportedLayer: a layer cannot be
            packed, or attention cannot be quantized. ModelError: the method wants to know something of the model that
            it does not tell.
    """
    method, around = METHODS[settings.method.kind], ModelSurroundings(adapter, skeleton, timesteps)
    layers = adapter.layers(skeleton)
    assignments = assign(layers, settings.weights, settings.activations, settings.rules, timesteps)
    assignments = split_layers(assignments, settings.split or method.split, asked=settings.split is not None)
    assignments = method.prepare(settings.method, assignments, around)
    cache = embedding_cache(settings, adapter, skeleton, timesteps)
    swap_layers(skeleton, specs_of(assignments))
    if cache is not None:
        swap_embeddings(skeleton, cache)
    install_attention(skeleton, attention_spec(settings.attention, skeleton))
    return assignments


def embedding_cache(
    settings: Quantize, adapter: Adapter, skeleton: nn.Module, timesteps: Callable[[], tuple[float, ...]]
) -> EmbeddingCache | None:
    """The time embeddings that the method replaces by tables, if it does. Raises ModelError where none is known."""
    if not METHODS[settings.method.kind].caches_embeddings(settings.method):
        return None
    return EmbeddingCache(time_embeddings(adapter, skeleton), timesteps())


def specs_of(assignments: list[Assignment]) -> dict[str, LayerSpec]:
    """Formats by name of the layers that are quantized."""
    return {a.info.name: a.spec for a in assignments if a.spec is not None}


def needs_trajectory(settings: Quantize) -> bool:
    """Whether the method or attention wants it, or any layer could have a static input."""
    choices = [settings.activations, *(rule.activations for rule in settings.rules)]
    static = any(c is not None and c.format != "none" and c.mode == "static" for c in choices)
    return static or settings.attention is not None or METHODS[settings.method.kind].needs_trajectory(settings.method)


def run(settings: Quantize, context: RunContext) -> StageResult:
    """Quantize the context's component into its folder."""
    adapter = context.adapter
    skeleton = adapter.skeleton()
    cache = embedding_cache(settings, adapter, skeleton, context.timesteps)
    assignments = assignments_for(settings, adapter, skeleton, context.timesteps)
    method, attention = METHODS[settings.method.kind], attention_spec(settings.attention, skeleton)
    scales = _static_scales(assignments, context) if method.observes else {}
    chosen = tuple(a for a in assignments if a.spec is not None)
    context.progress.start(f"quantize ({settings.method.kind})", len(chosen))
    with read_tensors(component_folder(adapter.source)) as reader:
        job = QuantizeJob(
            assignments=chosen,
            read=lambda name: reader.get(name).float(),
            static_scales=scales,
            seed=context.seed,
            tick=lambda name: context.progress.advance(),
            calibration=_calibration(context) if method.needs_trajectory(settings.method) else None,
        )
        write_quantized_component(
            reader,
            adapter.source.config,
            specs_of(assignments),
            [a.info.name for a in assignments if a.spec is None],
            method.run(settings.method, job),
            scales,
            context.folder,
            attention,
            _attention_scales(settings, attention, context),
            cache=cache,
            tables=None if cache is None else embedding_tables(adapter, adapter.load(), cache.timesteps),
        )
    return StageResult(_facts(settings, assignments))


def _calibration(context: RunContext) -> Calibration:
    context.work.mkdir(parents=True, exist_ok=True)
    return Calibration(
        adapter=context.adapter,
        load=lambda: context.adapter.load(dtype="float32", device=context.device),
        trajectory=context.trajectory,
        work=context.work,
        device=context.device,
        memory_budget=context.memory_budget,
        progress=context.progress,
    )


def _static_scales(assignments: list[Assignment], context: RunContext) -> dict[str, StaticScale]:
    if not static_assignments(assignments):
        return {}
    trajectory, model = context.trajectory(), context.adapter.load(device=context.device)
    context.progress.start("activation statistics", len(trajectory))
    reach = context.progress.reach
    return static_scales(context.adapter, model, trajectory, assignments, reach, seed=context.seed)


def _attention_scales(settings: Quantize, spec: AttentionSpec | None, context: RunContext) -> dict[str, Tensor]:
    """Stored tensors of quantized attention by full name, from the full-precision model."""
    if spec is None or settings.attention is None:
        return {}
    trajectory, model = context.trajectory(), context.adapter.load(device=context.device)
    context.progress.start("attention statistics", len(trajectory))
    observer, reach = settings.activations.observer, context.progress.reach
    return attention_scales(
        context.adapter, model, trajectory, settings.attention, spec, observer, reach, seed=context.seed
    )


def _facts(settings: Quantize, assignments: list[Assignment]) -> dict[str, str | float | int | None]:
    formats = Counter("kept" if a.spec is None else a.spec.summary() for a in assignments)
    found = settings.attention
    attention = {} if found is None else {"attention": f"int{found.bits}, softmax uint{found.softmax_bits}"}
    layers = {f"layers {name}": count for name, count in formats.items()}
    return {"method": settings.method.kind, **layers, **attention}


register_stage(StageKind(Quantize, run, needs_trajectory))
