"""Samples the bundled models and scores them; every finished run is kept in a cache folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from compress.config import content_hash
from compress.engine.fingerprint import code_hash, tree_hashes, versions
from compress.evaluate.accuracy import class_accuracy, class_accuracy_by_class
from compress.evaluate.frechet import distance, frechet_distance, frechet_floor
from compress.evaluate.kid import kid
from compress.evaluate.machine import cpu_model
from compress.files import write_text_atomically
from compress.models.zoo import zoo_folder
from compress.models.zoo.card import draw, load_pipeline, save_grid
from compress.models.zoo.classifier import (
    CLASSIFIERS,
    classifier_folder,
    judge,
    load_classifier,
    reference_features,
    reference_statistics,
)
from compress.report.model import Data, Metric

SCORES = {"class_accuracy": "class accuracy", "frechet_distance": "Fréchet distance", "kid": "KID"}
"""The metrics of a run and what they are called in print."""

GRID_ROWS = 8


class Run(Data):
    """Scores of `n` images of one model, classes in turn, image i from the noise of (seed, i).

    `metrics` are class accuracy (also by class, labelled `category`), Fréchet distance from the statistics of all test
    digits, and KID against the stored test digits. `seconds` is the time of sampling alone, on this processor with
    these threads and this batch. `files` is a hash of model, judge and code.
    """

    model: str
    sampler: str
    steps: int
    guidance: float
    n: int
    seed: int
    metrics: list[Metric]
    seconds: float
    cpu: str
    threads: int
    batch: int
    files: str

    def find(self, name: str) -> Metric:
        """The main value of a metric, that without labels."""
        return next(metric for metric in self.metrics if metric.name == name and not metric.labels)


class OverSeeds(Data):
    """A metric of several runs that differ in the seed alone; `sd` is None for a single one."""

    name: str
    mean: float
    sd: float | None


class Summary(Data):
    """The runs of one model with one number of steps."""

    model: str
    steps: int
    guidance: float
    n: int
    seeds: list[int]
    over_seeds: list[OverSeeds]


class ReferenceModels(Data):
    """Everything measured; `floors` are what real digits score, labelled `floor` (which) and `against`."""

    command: str
    machine: dict[str, str | float | int | None]
    floors: list[Metric]
    summaries: list[Summary]
    runs: list[Run]


class Model:
    """A bundled model, loaded when it is first sampled."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, zoo_folder(name)
        self.judge_folder = classifier_folder(CLASSIFIERS[name])

    @cached_property
    def pipeline(self) -> Any:
        """The sampler, computing in float32."""
        return load_pipeline(self.folder)

    @cached_property
    def files(self) -> str:
        """A hash of all that determines a run besides its settings: model, judge, code and library versions."""
        parts = [tree_hashes(part, ["*.json", "*.safetensors"]) for part in (self.folder, self.judge_folder)]
        return content_hash([parts, code_hash(), versions()])


def measure(model: Model, steps: int, seed: int, guidance: float, n: int, batch: int) -> Run:
    """Draw and score one set of images."""
    classifier = load_classifier(model.judge_folder)
    labels = torch.arange(n) % classifier.head.out_features
    pipeline = model.pipeline  # loaded before the clock starts
    start = time.perf_counter()
    images = draw(pipeline, labels, steps, guidance, seed, batch)
    seconds = time.perf_counter() - start
    features, logits = judge(classifier, images)
    test, real = reference_statistics("test", model.judge_folder), reference_features(model.judge_folder).features
    metrics = [
        class_accuracy(logits, labels, artefact="reference", seed=seed),
        frechet_distance(features, test, artefact="reference", seed=seed),
        kid(features, real, artefact="reference", seed=seed),
        *class_accuracy_by_class(logits, labels, artefact="reference", seed=seed),
    ]
    sampler = type(pipeline.scheduler).__name__.removesuffix("Scheduler")
    cpu, threads = cpu_model(), torch.get_num_threads()
    return Run(
        model=model.name, sampler=sampler, steps=steps, guidance=guidance, n=n, seed=seed, metrics=metrics,
        seconds=seconds, cpu=cpu, threads=threads, batch=batch, files=model.files,
    )  # fmt: skip


def cached_run(cache: Path, model: Model, steps: int, seed: int, guidance: float, n: int, batch: int) -> Run:
    """The run kept in `cache` if it is of the same weights, code, guidance and n; else a new one, which is kept.

    Threads and batch change nothing but rounding, so a run of other ones counts.
    """
    path = cache / f"{model.name}-ddim{steps}-seed{seed}.json"
    try:
        kept = Run.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        kept = None
    if kept is not None and (kept.files, kept.guidance, kept.n) == (model.files, guidance, n):
        return kept
    run = measure(model, steps, seed, guidance, n, batch)
    cache.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, run.model_dump_json(indent=2) + "\n")
    return run


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """Mean and standard deviation over the seeds of every (model, steps), in the order of the runs."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.model, run.steps), []).append(run)
    return [
        Summary(
            model=model,
            steps=steps,
            guidance=group[0].guidance,
            n=group[0].n,
            seeds=[run.seed for run in group],
            over_seeds=[_over_seeds(name, [run.find(name).value for run in group]) for name in SCORES],
        )
        for (model, steps), group in groups.items()
    ]


def _over_seeds(name: str, values: list[float]) -> OverSeeds:
    return OverSeeds(name=name, mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else None)


def floors(folder: Path, n: int) -> list[Metric]:
    """What real digits score: n of the stored test digits (or all), and the whole training split.

    Test digits are held against the training statistics: those of the test split contain them.
    """
    features, labels = reference_features(folder)
    count = min(n, len(features))
    train, test = reference_statistics("train", folder), reference_statistics("test", folder)
    accuracy = class_accuracy(load_classifier(folder).head(features), labels, artefact="reference")
    some = frechet_floor(features, train, count)
    return [
        accuracy.model_copy(update={"labels": {"floor": "stored test digits"}}),
        _floor(some, count, 0, {"floor": f"{count:,} test digits", "against": "all training digits"}),
        _floor(distance(train, test), train.n, None, {"floor": "all training digits", "against": "all test digits"}),
    ]


def _floor(value: float, n: int, seed: int | None, labels: dict[str, str]) -> Metric:
    return Metric(name="frechet_distance", value=value, n=n, seed=seed, artefact="reference", labels=labels)


def write_grid(model: Model, steps: int, guidance: float, seed: int, path: Path) -> None:
    """A PNG of the first images of a run, one column a class."""
    classes = load_classifier(model.judge_folder).head.out_features
    path.parent.mkdir(parents=True, exist_ok=True)
    images = draw(model.pipeline, torch.arange(classes * GRID_ROWS) % classes, steps, guidance, seed)
    save_grid(images, path, classes)


def grid_name(model: str, steps: int) -> str:
    """File name of a model's grid of samples."""
    return f"{model}-ddim{steps}.png"
