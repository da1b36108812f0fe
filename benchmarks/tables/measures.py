"""What is measured of a cell and of full precision, each kept under the hash of everything that determined it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.tables.bench import Bench
from benchmarks.tables.table import Cell
from compress.calibration.chunks import file_sha256
from compress.calibration.sampler import denoise_with
from compress.config import content_hash
from compress.engine.cache import Step
from compress.evaluate.accuracy import class_accuracy
from compress.evaluate.denoising import NoisyImages, denoising_loss_increase, denoising_losses, noisy_images
from compress.evaluate.frechet import frechet_distance
from compress.evaluate.noise_error import noise_error
from compress.evaluate.noise_floor import noise_error_floor, psnr_floor, run_twice
from compress.evaluate.paired import psnr
from compress.evaluate.size import size_metrics
from compress.models.zoo.classifier import classifier_folder, judge, load_classifier, reference_statistics
from compress.report.model import Metric
from compress.stages.evaluate import EvaluationContext
from compress.stages.evaluate.bank import draw_images, evaluation_seed, images, noise_predictions, stored_pairs
from compress.stages.evaluate.base import CHUNK
from compress.stages.evaluate.images import run_generation
from compress.stages.evaluate.settings import Generation

FLOOR_PAIRS, FLOOR_IMAGES = 256, 32


def ranking(bench: Bench, cell: Cell) -> list[Metric]:
    """Noise error, PSNR and denoising loss of a cell, and its size."""
    run = bench.open(cell)
    component = run.stages()
    context = bench.context(run, component)
    full = reference_folder(bench, context)

    def build(folder: Path) -> dict[str, Any]:
        return _as_json(_ranking(bench, context, full))

    return _from_json(run.steps.step("cell", _inputs(bench, context), build))


def _ranking(bench: Bench, context: EvaluationContext, full: Path) -> list[Metric]:
    p, seed = bench.protocol, bench.seed
    stored = load_file(full / "full.safetensors")
    pairs = stored_pairs(context, p.pairs)
    eps = noise_predictions(context, "checkpoint", pairs)
    found = noise_error(stored["eps"], eps, pairs.sigma, artefact="checkpoint", bands=p.bands, seed=seed)
    reference = images(context, "reference", p.images)
    found += psnr(reference, images(context, "checkpoint", p.images), artefact="checkpoint", seed=seed)
    noisy = _noisy(bench, context, seed)
    losses = denoising_losses(noisy, _predict(context, "checkpoint", noisy))
    increase = denoising_loss_increase(stored["losses"][0], losses, seed)
    found.append(
        Metric(
            name="denoising_loss_increase",
            value=increase.mean,
            n=len(losses),
            seed=seed,
            spread=increase.spread(),
            artefact="checkpoint",
        )
    )
    original = context.subjects["reference"].folder
    return found + size_metrics(context.subjects["checkpoint"].folder, original, artefact="checkpoint")


def headline(bench: Bench, cell: Cell) -> list[Metric]:
    """Class accuracy and feature distances of a cell and of full precision, from the same noise."""
    run = bench.open(cell)
    context = bench.context(run, run.stages())

    def build(folder: Path) -> dict[str, Any]:
        return _as_json(run_generation(Generation(n=bench.protocol.headline_images), context).metrics)

    return _from_json(run.steps.step("cell-headline", _inputs(bench, context), build))


def full_precision(bench: Bench) -> list[Metric]:
    """Floors of the original against itself, and its denoising loss at every seed of the protocol."""
    run = bench.open(None)
    context = bench.context(run, None)
    step = _reference(bench, context)
    return _from_json(step)


def seed_headline(bench: Bench, seed: int) -> list[Metric]:
    """Class accuracy and Fréchet distance of full precision from the noise of another seed."""
    run = bench.open(None)
    context = replace(bench.context(run, None), seed=seed)
    n = bench.protocol.headline_images

    def build(folder: Path) -> dict[str, Any]:
        assert context.judge is not None
        labels = context.conditions.labels_of(range(n))
        assert labels is not None
        judged = judge(load_classifier(classifier_folder(context.judge)), images(context, "reference", n))
        extra = {"seed": str(seed)}
        found = [
            class_accuracy(judged.logits, labels, artefact="reference", seed=seed),
            frechet_distance(judged.features, reference_statistics("test"), artefact="reference", seed=seed),
        ]
        return _as_json([metric.model_copy(update={"labels": extra}) for metric in found])

    return _from_json(run.steps.step("full-precision-headline", {**_inputs(bench, context), "of": seed}, build))


def reference_folder(bench: Bench, context: EvaluationContext) -> Path:
    """Folder of what full precision predicts: `full.safetensors` with eps `[pairs, ...]`, losses `[seeds, noised]`."""
    return _reference(bench, context).folder


def _reference(bench: Bench, context: EvaluationContext) -> Step:
    p = bench.protocol

    def build(folder: Path) -> dict[str, Any]:
        eps = noise_predictions(context, "reference", stored_pairs(context, p.pairs))
        losses = []
        for seed in range(bench.seed, bench.seed + p.seeds):
            noisy = _noisy(bench, context, seed)
            losses.append(denoising_losses(noisy, _predict(context, "reference", noisy)))
        save_file({"eps": eps, "losses": torch.stack(losses)}, folder / "full.safetensors")
        found = [
            Metric(
                name="denoising_loss",
                value=float(each.mean()),
                n=len(each),
                seed=bench.seed + k,
                artefact="reference",
                labels={"seed": str(bench.seed + k)},
            )
            for k, each in enumerate(losses)
        ]
        return _as_json(found + _floors(bench, context))

    alone = {"reference": context.subjects["reference"]}
    step = context.steps.step("full-precision", _inputs(bench, replace(context, subjects=alone)), build)
    assert isinstance(step, Step)
    return step


def _floors(bench: Bench, context: EvaluationContext) -> list[Metric]:
    """Full precision against itself at another thread count, and against float64."""
    p, seed = bench.protocol, bench.seed
    few = stored_pairs(context, p.pairs).part(0, FLOOR_PAIRS)
    runs = run_twice(lambda: noise_predictions(context, "reference", few))
    found = noise_error_floor(runs, few.sigma, bands=1, seed=seed)[:1]
    found += psnr_floor(run_twice(lambda: draw_images(context, "reference", FLOOR_IMAGES)), seed=seed)[:1]
    load = context.subjects["reference"].load
    assert load is not None
    exact = denoise_with(context.adapter, load().double())
    subject = replace(context.subjects["reference"], open=lambda: exact)
    double = replace(context, subjects={"reference": subject}, _opened={})
    labels = {"floor": "float64"}
    predicted = noise_predictions(double, "reference", few).float()
    error = noise_error(runs.first, predicted, few.sigma, artefact="reference", bands=1, seed=seed)[0]
    drawn = draw_images(double, "reference", FLOOR_IMAGES).float()
    close = psnr(draw_images(context, "reference", FLOOR_IMAGES), drawn, artefact="reference", seed=seed)[0]
    return found + [metric.model_copy(update={"labels": labels}) for metric in (error, close)]


def _noisy(bench: Bench, context: EvaluationContext, seed: int) -> NoisyImages:
    """The protocol's noised copies of full precision's own images."""
    clean = images(context, "reference", bench.protocol.images)
    return noisy_images(clean, context.adapter.noise_schedule(), bench.protocol.noised, seed + evaluation_seed(context))


def _predict(context: EvaluationContext, artefact: Any, noisy: NoisyImages) -> Tensor:
    """Predicted noise `[n, c, h, w]` on noised images, each with its image's condition."""
    denoise, schedule = context.denoiser(artefact), context.adapter.noise_schedule()
    found = []
    with torch.inference_mode():
        for start in range(0, len(noisy.t), CHUNK):
            part = slice(start, start + CHUNK)
            condition = context.conditions(noisy.image[part].tolist()).condition
            output = denoise(noisy.sample[part], noisy.t[part], condition)
            found.append(schedule.to_epsilon(output, noisy.sample[part], noisy.t[part]))
    return torch.cat(found)


@cache
def _code() -> str:
    """The engine's keys cover the package; this covers the files here that decide what is measured."""
    return content_hash({name: file_sha256(Path(__file__).parent / name) for name in ("measures.py", "bench.py")})


def _inputs(bench: Bench, context: EvaluationContext) -> dict[str, Any]:
    return {
        "benchmarks": _code(),
        "subjects": {name: subject.key for name, subject in context.subjects.items()},
        "protocol": bench.protocol,
        "conditions": context.conditions.facts,
        "seed": bench.seed,
    }


def _as_json(metrics: list[Metric]) -> dict[str, Any]:
    return {"metrics": [metric.model_dump(mode="json") for metric in metrics]}


def _from_json(step: Step) -> list[Metric]:
    return [Metric.model_validate(metric) for metric in step.result["metrics"]]
