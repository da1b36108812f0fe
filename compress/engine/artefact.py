"""Commands on artefacts: draw from one, measure one, export one."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from compress.calibration.conditions import ClassConditions, Conditions, NoConditions, resolve_conditions
from compress.calibration.sampler import Denoise, Draw, Sampler, denoise_with, make_scheduler, sample_batches
from compress.checkpoint.assemble import MANIFEST, component_name
from compress.checkpoint.load import read_manifest
from compress.checkpoint.quantizer import register
from compress.engine.cache import Cache, Step
from compress.engine.fingerprint import versions
from compress.engine.job import subjects
from compress.engine.measure import KeyedSteps, measure
from compress.engine.progress import ConsoleProgress
from compress.engine.run import pick_device, source_hash
from compress.errors import CheckpointError, InputError, explain_os_error
from compress.evaluate.machine import machine_facts
from compress.models.adapter import Adapter
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve
from compress.models.zoo.classifier import judge_of
from compress.recipe.model import Recipe
from compress.report.model import Report, StageRecord
from compress.report.write import write_report
from compress.stages.evaluate import EvaluateEntry, EvaluationContext
from compress.stages.evaluate.settings import Generation, Latency, NoiseError, Paired

ONNX_INFO = "export.json"


class SampleRequest(NamedTuple):
    """What to draw: `labels` take turns, None means every class; guidance None means 1.5 where there are classes."""

    kind: str
    steps: int
    guidance: float | None
    images: int
    seed: int
    labels: tuple[int, ...] | None


class Opened(NamedTuple):
    """An artefact ready to call, with the adapter that knows its shapes and conditions."""

    adapter: Adapter
    denoise: Denoise


def open_artefact(name: str) -> Opened:
    """A checkpoint, a run's output folder, an ONNX folder, or any model source.

    Raises:
        ModelError, CheckpointError: it is none of these. InputError: an ONNX folder without its checkpoint.
    """
    register()
    folder = Path(name).expanduser()
    if (folder / "checkpoint").is_dir():
        folder = folder / "checkpoint"
    onnx = next((part for part in [folder, *sorted(folder.glob("*/"))] if (part / ONNX_INFO).is_file()), None)
    if onnx is not None:
        from compress.export.session import OnnxDenoiser

        return Opened(open_adapter(resolve(str(_checkpoint_beside(onnx)))), OnnxDenoiser(onnx))
    adapter = open_adapter(resolve(str(folder) if folder.is_dir() else name))
    return Opened(adapter, denoise_with(adapter, adapter.load(device=pick_device("auto"))))


def _checkpoint_beside(onnx: Path) -> Path:
    for parent in onnx.resolve().parents:
        if (parent / "checkpoint").is_dir():
            return parent / "checkpoint"
    raise InputError("no checkpoint lies beside this ONNX model", where=str(onnx), hint="keep OUT/onnx in OUT")


def draw_grid(name: str, request: SampleRequest, output: Path) -> None:
    """Write a PNG grid of images drawn from an artefact.

    Raises:
        OutputError: the file cannot be written.
    """
    import base64

    from compress.report.figures import sample_grid_png

    adapter, denoise = open_artefact(name)
    conditions = default_conditions(adapter, request.labels)
    guidance = request.guidance if request.guidance is not None else 1.0 if adapter.class_count() is None else 1.5
    sampler = Sampler(kind=request.kind, steps=request.steps, guidance_scale=guidance)
    draw = Draw(request.images, adapter.sample_shape(), request.seed, 0, 64, pick_device("auto"))
    scheduler = make_scheduler(sampler, scheduler_config(adapter.source))
    images = sample_batches(denoise, scheduler, sampler, conditions, draw)
    png = base64.b64decode(sample_grid_png(images, min(10, request.images)))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(png)
    except OSError as error:
        raise explain_os_error(error, output) from error


def default_conditions(adapter: Adapter, labels: tuple[int, ...] | None = None) -> Conditions:
    """Classes in turn for a class-conditional model, none for an unconditional one."""
    settings = NoConditions() if adapter.class_count() is None else ClassConditions(labels=labels)
    return resolve_conditions(settings, adapter)


def evaluate_artefact(artefact: Path, reference: str, output: Path, n: int, quiet: bool = False) -> Report:
    """Measure a checkpoint, and the ONNX beside it, against its original; write OUTPUT/report.

    Sampler, conditions and seed are those of the recipe in its manifest; without a manifest, DDIM without guidance,
    every class in turn, and seed 0.

    Raises:
        ModelError, CheckpointError: one of the two is not readable.
    """
    artefact = artefact.resolve()
    checkpoint = artefact / "checkpoint" if (artefact / "checkpoint").is_dir() else artefact
    onnx = checkpoint.parent / "onnx" if (checkpoint.parent / "onnx").is_dir() else None
    original = open_adapter(resolve(reference))
    register()
    part = checkpoint / component_name(resolve(str(checkpoint)))
    manifest = read_manifest(part) if (part / MANIFEST).is_file() else {}
    recipe = _recipe_of(manifest, part)
    key = source_hash(original.source)
    cache = Cache(output / ".work")
    cache.prepare()
    context = EvaluationContext(
        adapter=original,
        subjects=subjects(original, key, checkpoint, onnx, device=pick_device("auto"), dtype="float32"),
        sampler=Sampler() if recipe is None else recipe.calibration.sampler,
        scheduler_config=scheduler_config(original.source),
        conditions=(
            default_conditions(original)
            if recipe is None
            else resolve_conditions(recipe.calibration.conditions, original)
        ),
        judge=judge_of(reference),
        steps=KeyedSteps(cache),
        seed=0 if recipe is None else recipe.seed,
        device=pick_device("auto"),
        progress=ConsoleProgress(quiet=quiet),
    )
    entries: list[EvaluateEntry] = [NoiseError(n=4 * n), Paired(n=n), Latency()]
    if context.judge is not None:
        entries.insert(2, Generation(n=n))
    return _measure(context, entries, manifest, output)


def _recipe_of(manifest: dict[str, Any], component: Path) -> Recipe | None:
    """The recipe a checkpoint was made by; None without a manifest.

    Raises:
        CheckpointError: the manifest holds none that this version understands.
    """
    if not manifest:
        return None
    try:
        return Recipe.model_validate_json(json.dumps(manifest["recipe"]))
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            "the manifest holds no recipe of this version", where=str(component / MANIFEST), hint="is it damaged?"
        ) from error


def _measure(
    context: EvaluationContext, entries: list[EvaluateEntry], manifest: dict[str, Any], output: Path
) -> Report:
    records: list[StageRecord] = []

    def record(entry: EvaluateEntry, step: Step) -> None:
        settings = entry.model_dump(mode="json", exclude_none=True)
        seconds = float(step.result["seconds"])
        records.append(StageRecord(kind=f"evaluate {entry.kind}", settings=settings, seconds=seconds))

    findings = measure(context, entries, record)
    source = context.adapter.source
    report = Report(
        name=str(manifest.get("recipe", {}).get("name", "evaluation")),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        compress_version=versions()["compress"],
        recipe=json.loads(json.dumps(manifest.get("recipe", {}))),
        model={"source": source.name, "class": source.denoiser_class, "family": context.adapter.family},
        machine=machine_facts(),
        stages=records,
        metrics=findings.metrics,
        tables=findings.tables,
        figures=findings.figures,
        gates=[],
    )
    write_report(report, output / "report")
    return report


def export_artefact(name: str, output: Path, opset: int, operators: str = "compress") -> Any:
    """Write ONNX of an artefact's denoiser below `output`; returns the exporter's result."""
    from compress.export.onnx_export import export_denoiser

    register()
    folder = Path(name) / "checkpoint"
    adapter = open_adapter(resolve(str(folder) if folder.is_dir() else name))
    final = output / component_name(adapter.source)
    partial, old = (final.with_name(f".{final.name}.{suffix}") for suffix in ("part", "old"))
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        result = export_denoiser(adapter, adapter.load(), partial, opset=opset, operators=operators)
        if final.exists():
            os.rename(final, old)
        os.rename(partial, final)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
    return replace(result, path=final / result.path.name)
