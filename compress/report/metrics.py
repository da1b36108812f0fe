"""The metrics that reports, gates and recipes know by name (ARCHITECTURE section 9)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from compress.config import suggest

Direction = Literal["lower", "higher", "neutral"]


class MetricInfo(NamedTuple):
    """What a metric means: unit ("" for a plain number), which way is better, and what measures it."""

    unit: str
    direction: Direction
    description: str
    measured_by: str


TIMES = "\u00d7"
"""The multiplication sign, the unit of a speed-up."""

_ALWAYS = "every run measures it on the checkpoint, and on onnx if the recipe has `export: {onnx: …}`"
_PAIRED = "add `{kind: paired}` under `evaluate`"
_GENERATION = "add `{kind: generation}` under `evaluate`"
_LATENCY = "add `{kind: latency}` under `evaluate`"
_TEMPORAL_ERROR = "add `{kind: temporal_error}` under `evaluate`"
_NOISE_ERROR = "add `{kind: noise_error}` under `evaluate`"

METRICS: dict[str, MetricInfo] = {
    "size_bytes": MetricInfo("bytes", "lower", "bytes of the weight files", _ALWAYS),
    "size_ratio": MetricInfo("", "lower", "bytes over those of the original in fp32", _ALWAYS),
    "bits_per_weight": MetricInfo("bits", "lower", "bits per weight, counted from the file", _ALWAYS),
    "parameters": MetricInfo("", "lower", "number of parameters", _ALWAYS),
    "macs": MetricInfo("", "lower", "multiply-accumulates of one forward", _ALWAYS),
    "bops": MetricInfo("", "lower", "MACs times the bits of both operands", _ALWAYS),
    "class_accuracy": MetricInfo("", "higher", "samples a classifier recognises as asked", _GENERATION),
    "class_accuracy_drop": MetricInfo("", "lower", "class accuracy lost against the reference", _GENERATION),
    "alignment": MetricInfo("", "higher", "samples that show what the prompt asks", _GENERATION),
    "alignment_drop": MetricInfo("", "lower", "alignment lost against the reference", _GENERATION),
    "frechet_distance": MetricInfo("", "lower", "Fréchet distance of the samples' features", _GENERATION),
    "frechet_increase": MetricInfo("", "lower", "Fréchet distance gained over the reference", _GENERATION),
    "kid": MetricInfo("", "lower", "kernel distance of the samples' features", _GENERATION),
    "psnr": MetricInfo("dB", "higher", "likeness to the reference on the same noise", _PAIRED),
    "ssim": MetricInfo("", "higher", "structural likeness on the same noise", _PAIRED),
    "noise_error": MetricInfo("", "lower", "error of the predicted noise", _NOISE_ERROR),
    "temporal_error": MetricInfo("", "lower", "error of the projected timestep and class embeddings", _TEMPORAL_ERROR),
    "latency_ms": MetricInfo("ms", "lower", "time of one denoiser call, median", _LATENCY),
    "latency_speedup": MetricInfo(TIMES, "higher", "times faster than the reference", _LATENCY),
    "peak_rss_mb": MetricInfo("MB", "lower", "largest resident memory", _LATENCY),
    "compress_seconds": MetricInfo("s", "lower", "time it took to compress", "every run measures it on the checkpoint"),
    "onnx_error": MetricInfo(
        "", "lower", "relative difference between the ONNX file and the checkpoint", "add `onnx: {…}` under `export`"
    ),
}


def suggest_metric(name: str) -> str:
    """A sentence for people who wrote an unknown metric: the likely one meant, or the list."""
    close = suggest(name, METRICS)
    return f"did you mean {close}?" if close else f"known metrics: {', '.join(METRICS)}"


def metric_info(name: str, unit: str = "") -> MetricInfo:
    """What is known about a metric; a name that is not in the table is neutral and keeps the unit it came with."""
    return METRICS.get(name) or MetricInfo(unit, "neutral", "", "")
