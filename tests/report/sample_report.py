"""A report as a real run writes it: three artefacts, eight noise bands, forty layers, drawn digits, one missed gate."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from compress.report.figures import side_by_side
from compress.report.gates import Gate, judge
from compress.report.model import Artefact, Metric, Report, StageRecord, Table
from compress.report.tables import ARTEFACTS

# Ten digits as polylines on a 3 x 5 lattice; drawn below with soft strokes, so they look handwritten enough.
_STROKES: dict[int, list[tuple[float, float]]] = {
    0: [(0, 1), (1, 0), (2, 1), (2, 3), (1, 4), (0, 3), (0, 1)],
    1: [(0.6, 1), (1.2, 0), (1.1, 4)],
    2: [(0, 0.8), (1, 0), (2, 1), (0, 4), (2, 3.9)],
    3: [(0, 0.2), (2, 0.4), (1, 1.8), (2, 3), (1, 4), (0, 3.6)],
    4: [(1.4, 0), (0, 2.6), (2.2, 2.5), (1.6, 1.4), (1.5, 4)],
    5: [(2, 0), (0.3, 0.1), (0.2, 1.8), (1.6, 1.8), (1.9, 3.2), (0.2, 4)],
    6: [(1.6, 0), (0.3, 2), (0.4, 3.6), (1.5, 4), (1.9, 2.8), (0.5, 2.5)],
    7: [(0, 0.1), (2, 0), (0.9, 4)],
    8: [(1, 2), (0.2, 1), (1, 0), (1.8, 1), (0.2, 3), (1, 4), (1.8, 3), (1, 2)],
    9: [(1.9, 1.2), (1, 1.8), (0.2, 1), (1, 0), (1.9, 1), (1.6, 4)],
}


def fake_digits(labels: list[int], seed: int, blur: float = 0.75) -> Tensor:
    """Images `[n, 1, 16, 16]` in [-1, 1] of drawn digits, slanted and placed at random."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = []
    for label in labels:
        slant, dx, dy, size = (torch.rand(4, generator=generator) - 0.5).tolist()
        points = [
            (8 + (x - 1) * (3.2 + size) - slant * (y - 2) * 1.6 + dx, 8 + (y - 2) * (2.6 + size / 2) + dy)
            for x, y in _STROKES[label]
        ]
        distance = torch.full((16, 16), math.inf)
        for (x0, y0), (x1, y1) in pairwise(points):
            length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-6)
            along = (((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length).clamp(0, 1)
            gap = ((columns - x0 - along * (x1 - x0)) ** 2 + (rows - y0 - along * (y1 - y0)) ** 2).sqrt()
            distance = torch.minimum(distance, gap)
        images.append((1 - ((distance - blur) / 0.9).clamp(0, 1)) * 2 - 1)
    return torch.stack(images)[:, None]


def _metric(
    name: str, artefact: Artefact, value: float, half: float | None = None, n: int = 1, **labels: str
) -> Metric:
    spread = (
        {}
        if half is None
        else {
            "ci95_low": value - half,
            "ci95_high": min(value + half, 1.0) if name == "class_accuracy" else value + half,
        }
    )
    return Metric(name=name, value=value, n=n, seed=0, spread=spread, artefact=artefact, labels=labels)


def _sizes() -> list[Metric]:
    classes: dict[Artefact, dict[str, int]] = {
        "reference": {"kept": 12_980_224, "biases": 180_736, "header": 11_904},
        "checkpoint": {
            "codes": 1_622_528, "scales": 811_264, "kept": 552_960, "biases": 180_736, "low rank": 20_480,
            "zero points": 9_216, "header": 7_408,
        },
    }  # fmt: skip
    metrics = []
    for artefact, sizes in classes.items():
        metrics.append(_metric("size_bytes", artefact, sum(sizes.values())))
        metrics += [_metric("size_bytes", artefact, size, tensor_class=name) for name, size in sizes.items()]
    whole = sum(classes["reference"].values())
    metrics.append(_metric("size_bytes", "onnx", 3_301_120))
    compressed: dict[Artefact, float] = {"checkpoint": sum(classes["checkpoint"].values()), "onnx": 3_301_120}
    for artefact, size in compressed.items():
        metrics.append(_metric("size_ratio", artefact, size / whole))
        metrics.append(_metric("size_ratio", artefact, 2 * size / whole, against="float16"))
    metrics.append(_metric("bits_per_weight", "checkpoint", 4.51))
    metrics += [_metric("parameters", artefact, 3_290_176) for artefact in ARTEFACTS]
    metrics += [_metric("macs", artefact, 210_300_928) for artefact in ARTEFACTS]
    metrics += [_metric("bops", "reference", 215_348_150_272), _metric("bops", "checkpoint", 6_981_632_512)]
    return metrics


def _quality() -> list[Metric]:
    metrics = [
        _metric("class_accuracy", "reference", 0.979, 0.0089, 1000),
        _metric("class_accuracy", "checkpoint", 0.9731, 0.0101, 1000),
        _metric("class_accuracy", "onnx", 0.9688, 0.0213, 256),
        _metric("class_accuracy_drop", "checkpoint", 0.0059, 0.0072, 1000),
        _metric("class_accuracy_drop", "onnx", 0.0102, 0.0181, 256),
        _metric("frechet_distance", "reference", 4.312, 0.21, 1000),
        _metric("frechet_distance", "checkpoint", 4.877, 0.24, 1000),
        _metric("frechet_distance", "onnx", 9.42, 1.1, 256),
        _metric("frechet_increase", "checkpoint", 0.565, 0.19, 1000),
        _metric("kid", "reference", 0.00041, 0.00022, 1000),
        _metric("kid", "checkpoint", 0.00063, 0.00025, 1000),
        _metric("psnr", "checkpoint", 24.83, 0.42, 128),
        _metric("psnr", "onnx", 24.71, 0.43, 128),
        _metric("ssim", "checkpoint", 0.9214, 0.0081, 128),
        _metric("ssim", "onnx", 0.9203, 0.0083, 128),
        _metric("onnx_error", "onnx", 3.1e-6),
        _metric("compress_seconds", "checkpoint", 254.3),
        _metric("psnr", "reference", 131.0, 1.4, 64, floor="threads 1 and 2"),
    ]
    worse: dict[Artefact, float] = {"reference": 0.8, "checkpoint": 1.1}
    metrics += [
        _metric("class_accuracy", artefact, 1 - (digit % 4) * 0.011 * factor, 0.02, 100, category=str(digit))
        for artefact, factor in worse.items()
        for digit in range(10)
    ]
    return metrics


def _speed() -> list[Metric]:
    times: dict[Artefact, tuple[float, float, float]] = {
        "reference": (7.48, 7.41, 7.66),
        "checkpoint": (11.92, 11.8, 12.31),
        "onnx": (4.083, 4.05, 4.31),
    }
    memory: dict[Artefact, float] = {"reference": 412.5, "checkpoint": 398.1, "onnx": 121.7}
    metrics = []
    for artefact, (median, q1, q3) in times.items():
        quartiles = {"q1": q1, "q3": q3}
        metrics.append(Metric(name="latency_ms", value=median, unit="ms", n=20, spread=quartiles, artefact=artefact))
        if artefact != "reference":
            ratios = {"q1": 7.41 / q3, "q3": 7.66 / q1}
            metrics.append(
                Metric(name="latency_speedup", value=7.48 / median, unit="x", n=20, spread=ratios, artefact=artefact)
            )
    for artefact, peak in memory.items():
        span = {"min": peak - 1.2, "max": peak + 2.1}
        metrics.append(Metric(name="peak_rss_mb", value=peak, unit="MB", n=3, spread=span, artefact=artefact))
    return metrics


def _bands() -> list[Metric]:
    edges = [0.0115, 0.031, 0.083, 0.22, 0.58, 1.5, 4.1, 16.0, 157.4]
    metrics = [
        _metric("noise_error", "checkpoint", 0.00712, 0.00031, 2048),
        _metric("noise_error", "onnx", 0.00714, 0.00031, 2048),
        _metric("noise_error", "reference", 3.2e-13, 2e-14, 2048, floor="threads 1 and 2"),
    ]
    for band in range(8):
        value = 0.031 * math.exp(-0.52 * band) + 0.0004
        span = {"band": str(band), "sigma_low": f"{edges[band]:.6g}", "sigma_high": f"{edges[band + 1]:.6g}"}
        metrics.append(_metric("noise_error", "checkpoint", value, value * 0.13, 256, **span))
        metrics.append(_metric("noise_error", "onnx", value * 1.07, value * 0.14, 256, **span))
        metrics.append(
            _metric("noise_error", "reference", value * 3e-3, value * 4e-4, 256, **span, floor="threads 1 and 2")
        )
    return metrics


def _layers() -> Table:
    kinds = [
        ("attn1.to_q", "attention_q"), ("attn1.to_k", "attention_k"), ("attn1.to_v", "attention_v"),
        ("attn1.to_out.0", "attention_out"), ("ff.net.0.proj", "ff_in"), ("ff.net.2", "ff_out"),
        ("norm1.linear", "modulation"),
    ]  # fmt: skip
    rows: list[list[str | float | int | None]] = []
    for index in range(40):
        block, (name, role) = index // len(kinds), kinds[index % len(kinds)]
        parameters = 192 * 192 * (4 if role.startswith("ff") else 6 if role == "modulation" else 1)
        wide = role == "modulation"
        rows.append([
            f"transformer_blocks.{block}.{name}", role, "int8" if wide else "int4 g64", "int8", 4 * parameters,
            parameters if wide else parameters * 9 // 16, 0.0042 if wide else 0.081 + 0.021 * math.sin(index * 1.7),
        ])  # fmt: skip
    columns = ["layer", "role", "weights", "activations", "bytes before", "bytes after", "weight error"]
    return Table(kind="layers", title="Layers", columns=columns, rows=rows, note="Error relative to the weights' norm.")


QUANTIZE: dict[str, object] = {
    "kind": "quantize",
    "method": {"kind": "gptq", "damping": 0.01},
    "weights": {"format": "int4", "granularity": "group", "group": 64},
    "activations": {"format": "int8", "granularity": "token", "mode": "dynamic"},
    "rules": [{"role": "modulation", "weights": {"format": "int8", "granularity": "channel"}}],
}
GATES: list[dict[str, object]] = [
    {"metric": "size_ratio", "artefact": "checkpoint", "max": 0.2},
    {"metric": "class_accuracy_drop", "artefact": "checkpoint", "max": 0.01},
    {"metric": "psnr", "artefact": "onnx", "min": 22},
    {"metric": "latency_speedup", "artefact": "onnx", "min": 1.5},
]
RECIPE: dict[str, object] = {
    "version": 1,
    "name": "digits-dit-w4a8",
    "seed": 0,
    "model": {"source": "zoo://digits-dit", "dtype": "float32", "device": "auto"},
    "calibration": {
        "sampler": {"kind": "ddim", "steps": 20, "guidance_scale": 1.5},
        "conditions": {"kind": "classes"},
        "samples": 64,
        "timesteps": {"kind": "uniform", "count": 20},
    },
    "stages": [QUANTIZE],
    "export": {"onnx": {"operators": "compress", "opset": 21}},
    "evaluate": [
        {"kind": "noise_error", "n": 2048},
        {"kind": "paired", "n": 128},
        {"kind": "generation", "n": 1000},
        {"kind": "latency", "batch": 16, "threads": 2},
    ],
    "gates": GATES,
}


@cache
def sample_report() -> Report:
    """The report, the same at every call."""
    metrics = [*_sizes(), *_quality(), *_speed(), *_bands()]
    digits = list(range(10))
    noise = torch.randn(10, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    reference = fake_digits(digits, 1)
    others = {
        "checkpoint": (fake_digits(digits, 1, 0.68) + 0.05 * noise).clamp(-1, 1),
        "onnx": (fake_digits(digits, 1, 0.66) + 0.06 * noise).clamp(-1, 1),
    }
    gates = [Gate.model_validate(gate) for gate in GATES]
    return Report(
        name="digits-dit-w4a8",
        created="2026-11-20T17:05:00+00:00",
        compress_version="0.1.0",
        recipe=RECIPE,
        model={"source": "zoo://digits-dit", "family": "dit", "class": "DiTTransformer2DModel", "sha256": "3f9a1c07b2"},
        machine={
            "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz", "cores": 2, "threads": 2, "memory_gb": 16.8,
            "platform": "Linux-6.1-x86_64", "python": "3.11.9", "gpu": None, "torch": "2.13.0+cpu",
        },
        stages=[
            StageRecord(kind="calibrate", settings={"samples": 64}, seconds=41.2, cached=True, facts={"calls": 1280}),
            StageRecord(
                kind="quantize",
                settings=QUANTIZE,
                seconds=187.4,
                facts={"layers": 40, "bytes": 3_204_592, "formats": "int4 g64: 34, int8: 6"},
            ),
            StageRecord(kind="export", settings={"operators": "compress"}, seconds=12.8, facts={"nodes": 611}),
            StageRecord(kind="evaluate", settings={}, seconds=262.0),
        ],
        metrics=metrics,
        tables=[_layers()],
        figures=side_by_side(reference, others, note="classes 0 to 9, DDIM, 20 steps, guidance 1.5"),
        gates=judge(gates, metrics),
        warnings=["6 modulation layers keep 8 bits: a rule of the recipe says so"],
    )  # fmt: skip


def sample_run(name: str, weights: str, size: float, accuracy: float, latency: float) -> Report:
    """The sample report as another run: its name, weight format, checkpoint size ratio, accuracy and ONNX latency."""
    report = sample_report()
    changes = {
        ("size_ratio", "checkpoint"): size,
        ("size_bytes", "checkpoint"): size * 13_172_864,
        ("class_accuracy", "checkpoint"): accuracy,
        ("class_accuracy_drop", "checkpoint"): 0.979 - accuracy,
        ("latency_ms", "onnx"): latency,
    }
    metrics = []
    for metric in report.metrics:
        value = changes.get((metric.name, metric.artefact), metric.value) if not metric.labels else metric.value
        spread = {key: bound + value - metric.value for key, bound in metric.spread.items()}
        metrics.append(metric.model_copy(update={"value": value, "spread": spread}))
    stage = {"kind": "quantize", "weights": {"format": weights}, "activations": {"format": "int8"}}
    gates = judge([Gate(metric="size_ratio", max=0.3), Gate(metric="class_accuracy_drop", max=0.01)], metrics)
    changed = {"name": name, "recipe": RECIPE | {"name": name, "stages": [stage]}, "metrics": metrics, "gates": gates}
    return report.model_copy(update=changed)


@cache
def sample_runs() -> tuple[Report, ...]:
    """Six runs: five on some front or near it, one that others beat in everything."""
    return (
        sample_report(),
        sample_run("digits-dit-w8a8", "int8", 0.262, 0.9785, 2.9),
        sample_run("digits-dit-w4a8-svdquant", "int4", 0.171, 0.9762, 3.9),
        sample_run("digits-dit-w3a8-hqq", "int3", 0.121, 0.958, 3.6),
        sample_run("digits-dit-edge", "int4", 0.092, 0.941, 1.7),
        sample_run("digits-dit-w8a8-nearest", "int8", 0.262, 0.9712, 4.4),
    )
