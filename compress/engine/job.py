"""One recipe from file to exit code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compress.calibration.sampler import Denoise, denoise_with
from compress.checkpoint.assemble import component_name
from compress.checkpoint.quantizer import register
from compress.config import content_hash
from compress.engine.cache import Step
from compress.engine.fingerprint import tree_hashes, versions
from compress.engine.float_table import attention_operations, float_table
from compress.engine.measure import measure
from compress.engine.run import Run, RunOptions, begin
from compress.evaluate.machine import machine_facts
from compress.evaluate.operations import LayerOperations
from compress.models.adapter import Adapter
from compress.models.layout import component_folder, scheduler_config
from compress.models.source import open_adapter, resolve
from compress.models.zoo.classifier import judge_of
from compress.recipe.dump import dump
from compress.recipe.model import LoadedRecipe
from compress.recipe.plan import Plan
from compress.report.gates import judge
from compress.report.model import Artefact, Metric, Report, Table
from compress.report.write import write_report
from compress.stages.evaluate import EvaluateEntry, EvaluationContext, Findings
from compress.stages.evaluate.base import Subject


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: `exit_code` is 0, or 1 when a gate was missed."""

    report: Report
    folder: Path

    @property
    def exit_code(self) -> int:
        return 0 if all(gate.passed for gate in self.report.gates) else 1


def run_recipe(loaded: LoadedRecipe, options: RunOptions) -> Outcome:
    """Carry out a recipe; a killed run continues where it was.

    Raises:
        CompressError: see the exception tree; its exit code is that of the process.
    """
    run = begin(loaded, options)
    with run.workspace.exclusive():
        run.workspace.claim(dump(loaded.recipe), options.fresh)
        try:
            component = run.stages()
            checkpoint = run.checkpoint(component)
            onnx = run.onnx(checkpoint)
            findings = evaluate_run(run, checkpoint, onnx)
            report = make_report(run, findings)
            write_published_report(run, report)
        finally:
            run.progress.finish()
    return Outcome(report, options.output)


def write_published_report(run: Run, report: Report) -> None:
    """OUT/report, published whole."""

    def build(folder: Path) -> None:
        write_report(report, folder)

    run.workspace.publish("report", content_hash(report), build)


def evaluate_run(run: Run, checkpoint: Path, onnx: Path | None) -> Findings:
    """Everything the recipe wants measured, on the reloaded artefacts."""
    recipe = run.loaded.recipe
    context = EvaluationContext(
        adapter=run.original,
        subjects=subjects(run.original, run.source_key, checkpoint, onnx, device=run.device, dtype=recipe.model.dtype),
        sampler=recipe.calibration.sampler,
        scheduler_config=scheduler_config(run.original.source),
        conditions=run.conditions,
        judge=judge_of(run.original.source.name),
        steps=run.steps,
        seed=recipe.seed,
        device=run.device,
        operations=operations(run.plan),
        layer_weights={row.name: row.weights for row in run.plan.layers if row.formats != "kept"},
        progress=run.progress,
    )

    def record(entry: EvaluateEntry, step: Step) -> None:
        run.record(f"evaluate {entry.kind}", entry.model_dump(mode="json", exclude_none=True), step)

    return measure(context, recipe.evaluate, record, lambda number: run.loaded.locating("evaluate", number))


def subjects(
    original: Adapter, original_key: str, checkpoint: Path, onnx: Path | None, *, device: str, dtype: str
) -> dict[Artefact, Subject]:
    """The original and its artefacts, each opened from disk when it is needed."""
    register()
    reloaded = open_adapter(resolve(str(checkpoint)))
    part = component_name(reloaded.source)
    checkpoint_key = content_hash(tree_hashes(checkpoint / part, ["*.safetensors", "config.json"]))
    found: dict[Artefact, Subject] = {
        "reference": Subject(
            artefact="reference",
            key=content_hash([original_key, dtype]),
            open=partial(_torch_denoiser, original, dtype, device),
            folder=component_folder(original.source),
            launch={"source": original.source.folder, "onnx": None},
            load=original.load,
        ),
        "checkpoint": Subject(
            artefact="checkpoint",
            key=content_hash([checkpoint_key, dtype]),
            open=partial(_torch_denoiser, reloaded, dtype, device),
            folder=checkpoint / part,
            launch={"source": str(checkpoint), "onnx": None},
            load=reloaded.load,
        ),
    }
    if onnx is not None:
        model = onnx / part
        found["onnx"] = Subject(
            artefact="onnx",
            key=content_hash(tree_hashes(model, ["*.onnx", "*.data"])),
            open=partial(_onnx_denoiser, model),
            folder=model,
            launch={"source": str(checkpoint), "onnx": str(model)},
        )
    return found


def _torch_denoiser(adapter: Adapter, dtype: str, device: str) -> Denoise:
    return denoise_with(adapter, adapter.load(dtype=dtype, device=device))


def _onnx_denoiser(folder: Path) -> Denoise:
    from compress.export.session import OnnxDenoiser

    denoiser: Denoise = OnnxDenoiser(folder)
    return denoiser


def operations(plan: Plan) -> Mapping[Artefact, list[LayerOperations]]:
    """Arithmetic of one forward, layer by layer, and that of attention's products."""
    before = [LayerOperations(facts.info.name, facts.macs) for facts in plan.original.layers]
    before.append(LayerOperations("attention", plan.original.attention_macs))
    after = [LayerOperations(row.name, row.macs, row.weight_bits, row.act_bits) for row in plan.layers]
    after += attention_operations(plan)
    return {"reference": before, "checkpoint": after}


def make_report(run: Run, findings: Findings) -> Report:
    """The report of a run."""
    recipe, source = run.loaded.recipe, run.original.source
    metrics = findings.metrics + _plan_metrics(run)
    model: dict[str, str | float | int | None] = {
        "source": source.name,
        "class": source.denoiser_class,
        "family": run.original.family,
        "parameters": run.plan.original.parameters,
        "sha256": run.source_key,
        "sampler": f"{recipe.calibration.sampler.kind}, {recipe.calibration.sampler.steps} steps, "
        f"guidance {recipe.calibration.sampler.guidance_scale:g}",
    }
    return Report(
        name=recipe.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        compress_version=versions()["compress"],
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        model=model,
        machine=machine_facts(),
        stages=run.records,
        metrics=metrics,
        tables=[*findings.tables, float_table(run.plan), layer_table(run.plan)],
        figures=findings.figures,
        gates=judge(recipe.gates, metrics),
        warnings=[*run.plan.notes, *(t.note for t in findings.tables if "NOT KEPT" in t.note)],
    )


def _plan_metrics(run: Run) -> list[Metric]:
    stages = [record.seconds for record in run.records if not record.kind.startswith("evaluate")]
    return [
        Metric(name="parameters", value=run.plan.original.parameters, artefact="reference"),
        Metric(name="parameters", value=run.plan.final.parameters, artefact="checkpoint"),
        Metric(name="compress_seconds", value=round(sum(stages), 3), unit="s", artefact="checkpoint"),
    ]


def layer_table(plan: Plan) -> Table:
    """One row a layer: formats and bytes."""
    rows: list[list[str | float | int | None]] = [
        [row.name, row.role, "x".join(map(str, row.shape)), row.formats, row.bytes_before, row.bytes_after, row.macs]
        for row in plan.layers
    ]
    columns = ["layer", "role", "shape", "weights · input", "bytes fp32", "bytes", "MACs"]
    return Table(kind="layers", title="Layers", columns=columns, rows=rows, note="Weights with their scales.")
