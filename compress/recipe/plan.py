"""What a recipe will do, per layer, with predicted bytes, memory and time; made without loading weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from compress.calibration.conditions import resolve_conditions
from compress.calibration.sampler import call_timesteps, make_scheduler
from compress.checkpoint.accounting import file_bytes, planned_tensors
from compress.errors import RecipeError
from compress.formats import get_format, predicted_bytes
from compress.models.adapter import Adapter
from compress.models.inspect import Inspection, inspect_model
from compress.models.layout import component_folder, has_weights, scheduler_config
from compress.models.source import open_adapter, read_tensors, resolve
from compress.models.zoo.classifier import judge_of
from compress.prune.depth import block_prefix
from compress.quantize.rules import Assignment
from compress.recipe.model import LoadedRecipe, Recipe
from compress.recipe.plan_kernels import layer_kernels, summarize
from compress.stages.base import stage_kind
from compress.stages.evaluate.settings import Generation, Latency, NoiseError, Paired, onnx_count
from compress.stages.prune import Prune, pruned_source_config
from compress.stages.quantize import Quantize, assignments_for

_LIBRARIES = 420 * 2**20  # resident memory of Python with torch and diffusers


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
        layers: linear and convolution layers of the final model.
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
        resolve_conditions(recipe.calibration.conditions, adapter, folders=loaded.folders())
    _check_entries(loaded, adapter)
    final, skeleton, assignments = _after_stages(loaded, adapter)
    final_inspection = inspect_model(final) if final is not adapter else inspection
    kernels = layer_kernels(skeleton)
    layers = _layers(final_inspection, assignments, {name: kernel.backend for name, kernel in kernels.items()})
    calls = _model_calls(recipe, len(call_timesteps(scheduler, recipe.calibration.sampler)))
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
        memory_bytes=_memory(inspection, fp32, predicted),
        seconds=sum(calls.values()) * inspection.macs * 2 / _flops(),
        steps=tuple(_steps(recipe, calls)),
        kernels=summarize(kernels.values()),
        notes=() if stored else ("no weights here: kept tensors are counted as float32",),
    )


def _after_stages(loaded: LoadedRecipe, adapter: Adapter) -> tuple[Adapter, nn.Module, list[Assignment]]:
    """The adapter and the skeleton of the model that leaves the last stage, and the formats of its layers."""
    assignments: list[Assignment] = []
    skeleton = adapter.skeleton()
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
                assignments = assignments_for(stage, adapter.layers(skeleton), skeleton)
    return adapter, skeleton, assignments


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


def _layers(
    inspection: Inspection, assignments: list[Assignment], kernels: Mapping[str, str]
) -> tuple[PlannedLayer, ...]:
    specs = {a.info.name: a.spec for a in assignments}
    rows = []
    for facts in inspection.layers:
        info, spec = facts.info, specs.get(facts.info.name)
        after = 4 * info.weight_parameters
        if spec is not None:
            after = predicted_bytes(info.weight_shape, spec.weights).total
        weight_bits = 32 if spec is None else get_format(spec.weights.format).bits
        act_bits = 32 if spec is None or spec.activations is None else spec.activations.bits
        formats = "kept" if spec is None else spec.summary()
        before = 4 * info.weight_parameters
        row = (info.name, str(info.role), info.weight_shape, facts.macs, formats, before, after, weight_bits, act_bits)
        rows.append(PlannedLayer(*row, kernels.get(info.name, "")))
    return tuple(rows)


def _stored_types(adapter: Adapter) -> dict[str, torch.dtype] | None:
    """Types of the source's tensors, from its headers; None without weights."""
    folder = component_folder(adapter.source)
    if not has_weights(folder):
        return None
    with read_tensors(folder) as reader:
        return {name: reader.dtype(name) for name in reader.names()}


def _model_calls(recipe: Recipe, calls: int) -> dict[str, int]:
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


def _memory(inspection: Inspection, fp32: int, predicted: int) -> int:
    """Original and compressed model side by side while they are compared, and one layer in float64 work space."""
    largest = max((layer.info.weight_parameters for layer in inspection.layers), default=0)
    return _LIBRARIES + fp32 + predicted + 16 * largest


def _flops() -> float:
    """Measured float32 matmul rate of this machine, in operations per second: a glance, not a benchmark."""
    a = torch.ones(256, 512)
    b = torch.ones(512, 512)
    torch.mm(a, b)
    start = time.perf_counter()
    for _ in range(8):
        torch.mm(a, b)
    return 8 * 2 * 256 * 512 * 512 / max(time.perf_counter() - start, 1e-6)
