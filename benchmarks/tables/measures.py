"""What is measured of a cell and of full precision, each kept under the hash of everything that determined it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from benchmarks.tables.bench import Bench
from benchmarks.tables.table import Cell
from compress.calibration import Record
from compress.calibration.capture import layer_inputs
from compress.calibration.sampler import denoise_with
from compress.config import content_hash
from compress.engine.cache import Step
from compress.engine.fingerprint import tree_hashes
from compress.errors import ModelError, RecipeError
from compress.evaluate.accuracy import class_accuracy
from compress.evaluate.frechet import frechet_distance
from compress.evaluate.noise_error import noise_error
from compress.evaluate.noise_floor import noise_error_floor, psnr_floor, run_twice
from compress.evaluate.paired import psnr
from compress.evaluate.size import size_metrics
from compress.files import file_sha256
from compress.kernels.backends import ENVIRONMENT
from compress.kernels.torch_int8 import int_mm_is_exact
from compress.models.zoo.classifier import classifier_folder, judge, load_classifier, reference_statistics
from compress.report.model import Artefact, Metric
from compress.stages.evaluate import EvaluationContext
from compress.stages.evaluate.bank import draw_images, images, noise_predictions, stored_pairs
from compress.stages.evaluate.base import Subject
from compress.stages.evaluate.images import run_generation
from compress.stages.evaluate.settings import Generation, TemporalError
from compress.stages.evaluate.temporal import run as run_temporal

FLOOR_PAIRS, FLOOR_IMAGES = 256, 32
CONCATENATION_PAIRS = 64


class Found(NamedTuple):
    """Metrics, the seconds they took when they were measured, and the hash of the original model."""

    metrics: list[Metric]
    seconds: float
    model: str


def ranking(bench: Bench, cell: Cell) -> Found:
    """Noise error, PSNR and temporal error of a cell, and its size."""
    run = bench.open(cell)
    context = bench.context(run, run.stages())
    p, seed = bench.protocol, bench.seed
    full = _predicted(bench, context).folder

    def measure() -> list[Metric]:
        pairs = stored_pairs(context, p.pairs)
        before = load_file(full / "predicted.safetensors")["eps"]
        after = noise_predictions(context, "checkpoint", pairs)
        found = noise_error(
            before, after, pairs.sigma, artefact="checkpoint", bands=p.bands, seed=seed, groups=pairs.image
        )
        drawn = images(context, "checkpoint", p.images)
        found += psnr(images(context, "reference", p.images), drawn, artefact="checkpoint", seed=seed)
        found += temporal(context)
        if any("split" in stage for stage in cell.stages):
            found += concatenation_error(context, pairs.part(0, CONCATENATION_PAIRS))
        original = context.subjects["reference"].folder
        return found + size_metrics(context.subjects["checkpoint"].folder, original, artefact="checkpoint")

    return _kept(context, "cell", [p.pairs, p.bands, p.images], measure)


def temporal(context: EvaluationContext) -> list[Metric]:
    """Error of the projected timestep embeddings, nothing for a family that cannot tell which they are."""
    try:
        return run_temporal(TemporalError(), context).metrics
    except (ModelError, RecipeError):
        return []


def concatenation_error(context: EvaluationContext, pairs: Record) -> list[Metric]:
    """Relative squared error of the layers on a skip concatenation, each fed what it reads in full precision.

    The mean over the layers, and one labelled `layer` for each of them; nothing for a model without such layers.
    """
    adapter, subjects = context.adapter, context.subjects
    names = [layer.name for layer in adapter.layers(adapter.skeleton()) if layer.split is not None]
    if not names:
        return []
    load_original, load_compressed = subjects["reference"].load, subjects["checkpoint"].load
    assert load_original is not None and load_compressed is not None
    original, compressed = load_original(), load_compressed()
    inputs = layer_inputs(adapter, original, pairs, names)
    errors = {}
    with torch.inference_mode():
        for name in names:
            before = original.get_submodule(name)(inputs[name])
            after = compressed.get_submodule(name)(inputs[name])
            errors[name] = float((after - before).square().sum() / before.square().sum())

    def metric(value: float, n: int, labels: dict[str, str]) -> Metric:
        return Metric(name="concatenation_error", value=value, n=n, artefact="checkpoint", labels=labels)

    layers = [metric(error, len(pairs.t), {"layer": name}) for name, error in errors.items()]
    return [metric(fmean(errors.values()), len(names), {}), *layers]


def headline(bench: Bench, cell: Cell) -> Found:
    """Class accuracy and feature distances of a cell and of full precision, from the same noise."""
    run = bench.open(cell)
    context = bench.context(run, run.stages())
    n = bench.protocol.headline_images
    return _kept(context, "cell-headline", n, lambda: run_generation(Generation(n=n), context).metrics)


def floors(bench: Bench) -> Found:
    """Full precision against itself: at another thread count, and with its layers in float64."""
    context = _original(bench)

    def measure() -> list[Metric]:
        few = stored_pairs(context, bench.protocol.pairs).part(0, FLOOR_PAIRS)
        predicted = run_twice(lambda: noise_predictions(context, "reference", few))
        drawn = run_twice(lambda: draw_images(context, "reference", FLOOR_IMAGES))
        found = noise_error_floor(predicted, few.sigma, bands=1, seed=bench.seed)[:1]
        found += psnr_floor(drawn, seed=bench.seed)[:1]
        double = _in_float64(context)
        error = noise_error(
            predicted.first,
            noise_predictions(double, "reference", few).float(),
            few.sigma,
            artefact="reference",
            bands=1,
            seed=bench.seed,
        )[0]
        exact = draw_images(double, "reference", FLOOR_IMAGES).float()
        close = psnr(drawn.first, exact, artefact="reference", seed=bench.seed)[0]
        return found + [metric.model_copy(update={"labels": {"floor": "float64 layers"}}) for metric in (error, close)]

    return _kept(context, "full-precision-floors", bench.protocol.pairs, measure)


def seed_headline(bench: Bench, seed: int) -> Found:
    """Class accuracy and Fréchet distance of full precision from the noise of another seed."""
    context = replace(_original(bench), seed=seed)
    n = bench.protocol.headline_images

    def measure() -> list[Metric]:
        labels = context.conditions.labels_of(range(n))
        assert context.judge is not None
        assert labels is not None
        judged = judge(load_classifier(classifier_folder(context.judge)), images(context, "reference", n))
        found = [
            class_accuracy(judged.logits, labels, artefact="reference", seed=seed),
            frechet_distance(judged.features, reference_statistics("test"), artefact="reference", seed=seed),
        ]
        return [metric.model_copy(update={"labels": {"seed": str(seed)}}) for metric in found]

    return _kept(context, "full-precision-headline", n, measure)


def _original(bench: Bench) -> EvaluationContext:
    return bench.context(bench.open(None), None)


def _predicted(bench: Bench, context: EvaluationContext) -> Step:
    """The step whose folder holds what full precision predicts on the stored pairs: eps `[pairs, c, h, w]`."""
    p = bench.protocol

    def build(folder: Path) -> None:
        eps = noise_predictions(context, "reference", stored_pairs(context, p.pairs))
        save_file({"eps": eps}, folder / "predicted.safetensors")

    reference: dict[Artefact, Subject] = {"reference": context.subjects["reference"]}
    inputs = _inputs(replace(context, subjects=reference), p.pairs)
    step = context.steps.step("full-precision", inputs, build)
    assert isinstance(step, Step)
    return step


def _in_float64(context: EvaluationContext) -> EvaluationContext:
    """The same with an original whose layers compute in float64; the sampler between the calls keeps float32."""
    load = context.subjects["reference"].load
    assert load is not None
    exact = denoise_with(context.adapter, load().double())
    subjects: dict[Artefact, Subject] = {"reference": replace(context.subjects["reference"], open=lambda: exact)}
    return replace(context, subjects=subjects, _opened={})


def _kept(context: EvaluationContext, name: str, settings: Any, measure: Callable[[], list[Metric]]) -> Found:
    def build(folder: Path) -> dict[str, Any]:
        return {"metrics": [metric.model_dump(mode="json") for metric in measure()]}

    step = context.steps.step(name, _inputs(context, settings), build)
    metrics = [Metric.model_validate(metric) for metric in step.result["metrics"]]
    return Found(metrics, float(step.result["seconds"]), context.subjects["reference"].key)


def _inputs(context: EvaluationContext, settings: Any) -> dict[str, Any]:
    """What decides a measurement besides the code of the package and the libraries, which the engine's keys cover."""
    return {
        "benchmarks": _code(),
        "settings": settings,
        "subjects": {name: subject.key for name, subject in context.subjects.items()},
        "sampler": context.sampler,
        "conditions": context.conditions.facts,
        "judge": None if context.judge is None else tree_hashes(classifier_folder(context.judge), ["*.safetensors"]),
        "seed": context.seed,
        "device": context.device,
        "kernels": [os.environ.get(ENVIRONMENT, ""), int_mm_is_exact()],
    }


@cache
def _code() -> str:
    return content_hash({name: file_sha256(Path(__file__).parent / name) for name in ("measures.py", "bench.py")})
