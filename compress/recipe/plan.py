"""What a recipe will do, per layer, with predicted bytes, memory and time; made without loading weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from compress.calibration.conditions import Conditions, PromptConditions, TextAdapter, read_texts, resolve_conditions
from compress.calibration.sampler import ConditionPair, call_timesteps, make_scheduler
from compress.calibration.spec import TrajectorySpec, calibrated_timesteps
from compress.checkpoint.accounting import file_bytes, planned_tensors
from compress.errors import RecipeError
from compress.formats import get_format, predicted_bytes
from compress.models.adapter import Adapter, LayerInfo
from compress.models.inspect import Inspection, inspect_model
from compress.models.layout import component_folder, has_weights, scheduler_config
from compress.models.source import open_adapter, read_tensors, resolve
from compress.models.zoo.classifier import judge_of
from compress.prune.depth import block_prefix
from compress.quantize.calibrated import LearnedRounding
from compress.quantize.methods import METHODS
from compress.quantize.rules import Assignment
from compress.quantize.spec import LayerSpec
from compress.recipe.model import LoadedRecipe, Recipe
from compress.recipe.plan_kernels import layer_kernels, summarize
from compress.stages.base import stage_kind
from compress.stages.evaluate.settings import Generation, Latency, NoiseError, Paired, TemporalError, onnx_count
from compress.stages.evaluate.temporal import conditioning_names
from compress.stages.prune import Prune, pruned_source_config
from compress.stages.quantize import Quantize, assignments_for

_LIBRARIES = 440 * 2**20  # resident memory of Python with torch and diffusers


@dataclass(frozen=True)
class PlannedLayer:
    """One row of the plan: bytes are those in the file, before and after; `kernel` is the backend, empty where kept."""

    name: str
    role: str
    shape: tuple[int, ...]
    macs: int
    formats: str
    bytes_before: int
    bytes_after: int
    weight_bits: int
    act_bits: int
    kernel: str

    @property
    def weights(self) -> int:
        """Weight count."""
        return self.bytes_before // 4


@dataclass(frozen=True)
class Plan:
    """Everything known before the run. Times are rough: model calls times their cost on this machine, measured briefly.

    Attributes:
        original, final: the model before and after the stages that change its shape.
        layers: linear and convolution layers of the final model; those that a table replaced are not in it.
        fp32_bytes: of the original model's parameters.
        predicted_bytes: of the compressed safetensors.
        memory_bytes: peak of the run, predicted.
        kernels: how many layers each backend gets on this CPU, and why not a faster one.
    """

    recipe: Recipe
    original: Inspection
    final: Inspection
    layers: tuple[PlannedLayer, ...]
    fp32_bytes: int
    predicted_bytes: int
    memory_bytes: int
    seconds: float
    steps: tuple[str, ...]
    kernels: str
    notes: tuple[str, ...]

    @property
    def size_ratio(self) -> float:
        """Predicted compressed bytes over fp32 bytes."""
        return self.predicted_bytes / self.fp32_bytes


def make_plan(loaded: LoadedRecipe) -> Plan:
    """The plan of a recipe.

    Raises:
        RecipeError: a rule matches nothing, the sampler or the conditions do not fit the model.
        ModelError: the model's folder is not readable.
    """
    recipe = loaded.recipe
    with loaded.locating("model", "source"):
        adapter = open_adapter(resolve(loaded.model_name()))
    inspection = inspect_model(adapter)
    with loaded.locating("calibration", "sampler"):
        scheduler = make_scheduler(recipe.calibration.sampler, scheduler_config(adapter.source))
    with loaded.locating("calibration", "conditions"):
        notes = _check_conditions(loaded, adapter)
    _check_entries(loaded, adapter)
    final, skeleton, assignments = _after_stages(loaded, adapter)
    final_inspection = _without_replaced(inspect_model(final) if final is not adapter else inspection, skeleton)
    kernels = layer_kernels(skeleton)
    layers = _layers(final_inspection, assignments, {name: kernel.backend for name, kernel in kernels.items()})
    timesteps = call_timesteps(scheduler, recipe.calibration.sampler)
    calls = _model_calls(recipe, len(timesteps), adapter.class_count() or 0)
    fp32 = 4 * inspection.parameters
    stored = _stored_types(adapter)
    predicted = file_bytes(planned_tensors(skeleton, stored or {}))
    return Plan(
        recipe=recipe,
        original=inspection,
        final=final_inspection,
        layers=layers,
        fp32_bytes=fp32,
        predicted_bytes=predicted,
        memory_bytes=_memory(recipe, inspection, fp32, predicted),
        seconds=sum(calls.values()) * inspection.macs * 2 / _flops(),
        steps=tuple(_steps(recipe, calls)),
        kernels=summarize(kernels.values()),
        notes=(*notes, *(() if stored else ("no weights here: kept tensors are counted as float32",))),
    )


def _after_stages(loaded: LoadedRecipe, adapter: Adapter) -> tuple[Adapter, nn.Module, list[Assignment]]:
    """The adapter and the skeleton of the model that leaves the last stage, and the formats of its layers."""
    assignments: list[Assignment] = []
    original, skeleton = adapter, adapter.skeleton()
    if loaded.recipe.stages and "quantization_config" in adapter.source.config:
        with loaded.locating("stages", 0):
            raise RecipeError("the model is quantized already", hint="start from the original model")
    for number, stage in enumerate(loaded.recipe.stages):
        with loaded.locating("stages", number):
            if isinstance(stage, Prune):
                blocks = [name for name, _ in adapter.blocks(skeleton)]
                block_prefix(blocks, adapter.source.config)
                config = pruned_source_config(stage, adapter.source.config, len(blocks))
                adapter = open_adapter(replace(adapter.source, config=config))
                skeleton = adapter.skeleton()
            elif isinstance(stage, Quantize):
                timesteps = partial(trajectory_timesteps, loaded.recipe, original)
                _check_cached(stage, loaded.recipe, original, timesteps)
                assignments = assignments_for(stage, adapter, skeleton, timesteps)
    return adapter, skeleton, assignments


def _without_replaced(inspection: Inspection, skeleton: nn.Module) -> Inspection:
    """The facts without the layers that the last stage replaced by tables: they compute and store nothing."""
    left = dict(skeleton.named_modules())
    gone = [facts for facts in inspection.layers if facts.info.name not in left]
    return replace(
        inspection,
        layers=tuple(facts for facts in inspection.layers if facts.info.name in left),
        parameters=inspection.parameters - sum(facts.parameters for facts in gone),
        macs=inspection.macs - sum(facts.macs for facts in gone),
    )


def _check_conditions(loaded: LoadedRecipe, adapter: Adapter) -> tuple[str, ...]:
    """Notes for the plan. A configuration alone has no text encoder, which running the recipe would need."""
    settings, folders = loaded.recipe.calibration.conditions, loaded.folders()
    bare = not has_weights(component_folder(adapter.source)) and not isinstance(adapter, TextAdapter)
    if bare and isinstance(settings, PromptConditions) and adapter.class_count() is None:
        read_texts(settings, folders)
        return ("no text encoder here: the recipe can be planned, but not run",)
    resolve_conditions(settings, adapter, folders=folders)
    return ()


def _check_cached(stage: Quantize, recipe: Recipe, original: Adapter, logged: Callable[[], tuple[float, ...]]) -> None:
    """A table must have a row for every step of the sampler. Raises RecipeError."""
    if not METHODS[stage.method.kind].caches_embeddings(stage.method):
        return
    sampler = recipe.calibration.sampler
    steps = set(call_timesteps(make_scheduler(sampler, scheduler_config(original.source)), sampler))
    if not steps <= set(logged()):
        raise RecipeError(
            f"cached embeddings need all {len(steps)} timesteps of the sampler, and {len(logged())} are logged",
            hint="set `calibration.timesteps: {kind: all}`",
            path=("method",),
        )


def trajectory_timesteps(recipe: Recipe, original: Adapter) -> tuple[float, ...]:
    """Ascending timesteps that the recipe's calibration trajectory visits, known without weights or conditions.

    Raises:
        RecipeError: sampler, timesteps and model do not fit each other.
    """
    settings = recipe.calibration
    spec = TrajectorySpec(
        sampler=settings.sampler,
        scheduler_config=scheduler_config(original.source),
        conditions=Conditions({}, lambda indices: ConditionPair({}, None)),
        timesteps=settings.timesteps,
        samples=settings.samples,
        seed=recipe.seed,
    )
    return calibrated_timesteps(original, spec)


def _check_entries(loaded: LoadedRecipe, adapter: Adapter) -> None:
    """Refuse evaluate entries that this model cannot have, before any work. Raises RecipeError."""
    channels = adapter.sample_shape()[0]
    for number, entry in enumerate(loaded.recipe.evaluate):
        with loaded.locating("evaluate", number):
            if isinstance(entry, Generation) and judge_of(adapter.source.name) is None:
                raise RecipeError("`generation` needs a classifier, and none is bundled for this model")
            if isinstance(entry, Generation) and loaded.recipe.calibration.conditions.kind != "classes":
                raise RecipeError("`generation` needs class labels", hint="set conditions: {kind: classes}")
            if isinstance(entry, Paired) and channels not in (1, 3):
                raise RecipeError(
                    f"`paired` compares images, and this model's samples are latents of {channels} channels",
                    hint="use `noise_error`",
                )
            if isinstance(entry, TemporalError):
                _check_temporal_error(loaded.recipe, adapter)


def _check_temporal_error(recipe: Recipe, adapter: Adapter) -> None:
    """Both models must have the same conditioning layers, and their family must know them. Raises RecipeError."""
    if any(isinstance(stage, Prune) for stage in recipe.stages):
        raise RecipeError("`temporal_error` compares layer by layer, and a pruned model has other layers")
    conditioning_names(adapter)


def _layers(
    inspection: Inspection, assignments: list[Assignment], kernels: Mapping[str, str]
) -> tuple[PlannedLayer, ...]:
    specs = {a.info.name: a.spec for a in assignments}
    rows = []
    for facts in inspection.layers:
        info, spec = facts.info, specs.get(facts.info.name)
        after = 4 * info.weight_parameters if spec is None else _packed_bytes(info, spec)
        weight_bits = 32 if spec is None else get_format(spec.weights.format).bits
        act_bits = 32 if spec is None or spec.activations is None else spec.activations.bits
        formats = "kept" if spec is None else spec.summary()
        before = 4 * info.weight_parameters
        row = (info.name, str(info.role), info.weight_shape, facts.macs, formats, before, after, weight_bits, act_bits)
        rows.append(PlannedLayer(*row, kernels.get(info.name, "")))
    return tuple(rows)


def _packed_bytes(info: LayerInfo, spec: LayerSpec) -> int:
    """Bytes of a layer's codes, scales, zero points and smoothing factors."""
    out, _, *kernel = info.weight_shape
    sizes = [part.stop - part.start for part in spec.parts(info.weight_shape)]
    packed = sum(predicted_bytes((out, size, *kernel), spec.weights).total for size in sizes)
    return packed + (4 * sum(sizes) if spec.smooth else 0)


def _stored_types(adapter: Adapter) -> dict[str, torch.dtype] | None:
    """Types of the source's tensors, from its headers; None without weights."""
    folder = component_folder(adapter.source)
    if not has_weights(folder):
        return None
    with read_tensors(folder) as reader:
        return {name: reader.dtype(name) for name in reader.names()}


def _model_calls(recipe: Recipe, calls: int, classes: int) -> dict[str, int]:
    """Forward passes of single samples, by what they are for."""
    halves = 2 if recipe.calibration.sampler.guided else 1
    per_image = calls * halves
    counts = {"calibrate": recipe.calibration.samples * per_image if needs_trajectory(recipe) else 0}
    onnx = recipe.export.onnx is not None
    images = [0, 0]
    for entry in recipe.evaluate:
        if isinstance(entry, NoiseError):
            counts["noise error"] = entry.n * (3 + onnx) + -(-entry.n // per_image) * per_image
        elif isinstance(entry, Paired | Generation):
            images = [max(images[0], 2 * entry.n), max(images[1], onnx_count(entry) if onnx else 0)]
        elif isinstance(entry, Latency):
            counts["latency"] = entry.batch * entry.rounds * (2 + onnx)
        elif isinstance(entry, TemporalError):
            counts["temporal error"] = 2 * calls * (min(entry.classes, classes) + 1)
    counts["images"] = sum(images) * per_image
    return {name: count for name, count in counts.items() if count}


def needs_trajectory(recipe: Recipe) -> bool:
    """Whether any stage reads the logged trajectory."""
    return any(stage_kind(stage).needs_trajectory(stage) for stage in recipe.stages)


def _steps(recipe: Recipe, calls: dict[str, int]) -> list[str]:
    steps = []
    if "calibrate" in calls:
        steps.append(f"calibrate: {recipe.calibration.samples} samples, {calls['calibrate']} model calls")
    steps += [f"{stage.kind}: {stage.method.kind}" for stage in recipe.stages]
    steps.append("checkpoint")
    if recipe.export.onnx is not None:
        steps.append(f"export: ONNX opset {recipe.export.onnx.opset}, {recipe.export.onnx.operators} operators")
    steps += [f"evaluate: {entry.kind}" for entry in recipe.evaluate]
    steps.append(f"report: {len(recipe.gates)} gates")
    return steps


def _memory(recipe: Recipe, inspection: Inspection, fp32: int, predicted: int) -> int:
    """Original and compressed model side by side while they are compared, or what it takes to make one of the other.

    Making it takes one layer in float64 work space; methods that learn rounding hold a byte for each decided code, and
    of the unit they learn V, its gradient, Adam's two averages and the floors.
    """
    largest = max((layer.info.weight_parameters for layer in inspection.layers), default=0)
    making = 16 * largest
    if any(isinstance(stage, Quantize) and isinstance(stage.method, LearnedRounding) for stage in recipe.stages):
        unit = max((block.parameters for block in inspection.blocks), default=0)
        making = inspection.parameters + 20 * max(unit, largest)
    return _LIBRARIES + fp32 + predicted + making


def _flops() -> float:
    """Measured float32 matmul rate of this machine, in operations per second: a glance, not a benchmark."""
    a = torch.ones(256, 512)
    b = torch.ones(512, 512)
    torch.mm(a, b)
    start = time.perf_counter()
    for _ in range(8):
        torch.mm(a, b)
    return 8 * 2 * 256 * 512 * 512 / max(time.perf_counter() - start, 1e-6)
