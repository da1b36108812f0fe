"""The `latency` entry: time of one denoiser call, and the peak memory of a process that makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compress.calibration.sampler import Denoise, call_timesteps, make_scheduler
from compress.evaluate.latency import interleaved_latency, latency_metric, speedup_metric
from compress.evaluate.memory import measure_peak, peak_metrics
from compress.evaluate.noise_floor import thread_count
from compress.export.manifest import read_manifest
from compress.export.session import OnnxDenoiser, kernels_available
from compress.kernels.backends import kernels_in_use
from compress.models.adapter import DenoiserInputs
from compress.report.model import Artefact, Metric, Table
from compress.stages.evaluate.base import EvaluationContext, Findings
from compress.stages.evaluate.settings import Latency

TARGET = "compress.stages.evaluate.targets:run_once"


def run(settings: Latency, context: EvaluationContext) -> Findings:
    """Median time of each artefact in interleaved rounds, the speed-up over the original, and peak memory."""
    inputs = context.adapter.example_inputs(settings.batch, device=context.device, seed=context.seed)
    # At a step of the sampler: a model with cached embeddings knows no other.
    first = call_timesteps(make_scheduler(context.sampler, context.scheduler_config), context.sampler)[0]
    inputs = inputs._replace(timestep=torch.full_like(inputs.timestep, first, dtype=torch.float32))
    calls: dict[str, Callable[[], object]] = {
        artefact: _call(context, artefact, inputs, settings.threads) for artefact in context.subjects
    }
    context.progress.note(f"latency: {settings.rounds} rounds of {', '.join(calls)}, batch {settings.batch}")
    with thread_count(settings.threads), torch.inference_mode():
        timings = interleaved_latency(calls, settings.rounds, warmup=2)
    findings = Findings()
    for artefact in context.subjects:
        findings.metrics.append(latency_metric(timings[artefact], artefact=artefact))
        if artefact != "reference":
            findings.metrics.append(speedup_metric(timings["reference"], timings[artefact], artefact=artefact))
    findings.tables.append(_runtimes(settings, context))
    if settings.memory:
        context.close()  # free memory before children need it
        for artefact in context.subjects:
            findings.metrics += _memory(settings, context, artefact)
    return findings


def _runtimes(settings: Latency, context: EvaluationContext) -> Table:
    """What computed each artefact."""
    runtimes = {"reference": "PyTorch", "checkpoint": f"PyTorch, kernels {kernels_in_use()}"}
    if "onnx" in context.subjects:
        operators = read_manifest(context.subjects["onnx"].folder)["operators"]
        ours = kernels_available() and operators == "compress"
        runtimes["onnx"] = f"onnxruntime, kernels {kernels_in_use()}" if ours else "onnxruntime, standard operators"
    note = f"Batch {settings.batch}, {settings.threads} threads, {settings.rounds} interleaved rounds."
    rows: list[list[str | float | int | None]] = [[name, runtimes[name]] for name in context.subjects]
    return Table(title="Latency: what computes", columns=["artefact", "runs in"], rows=rows, note=note)


def _call(context: EvaluationContext, artefact: Artefact, inputs: DenoiserInputs, threads: int) -> Callable[[], object]:
    if artefact == "onnx":
        # A session keeps the thread count it is opened with. Its threads must not spin through torch's turns, which
        # would take more than twice as long beside them.
        folder = context.subjects[artefact].folder
        denoise: Denoise = OnnxDenoiser(folder, threads=threads, spinning=False)
    else:
        denoise = context.denoiser(artefact)
    t = inputs.timestep.float()
    return lambda: denoise(inputs.sample, t, inputs.condition)


def _memory(settings: Latency, context: EvaluationContext, artefact: Artefact) -> list[Metric]:
    arguments = {**context.subjects[artefact].launch, "batch": settings.batch, "threads": settings.threads}
    context.progress.note(f"peak memory of {artefact}")
    return peak_metrics([measure_peak(TARGET, arguments)], artefact=artefact)
