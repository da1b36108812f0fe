"""The `paired` and `generation` entries: images of every artefact from the same noise."""

from __future__ import annotations

from torch import Tensor

from compress.errors import RecipeError
from compress.evaluate.accuracy import class_accuracy, class_accuracy_drop
from compress.evaluate.frechet import frechet_distance, frechet_floor, frechet_increase
from compress.evaluate.kid import kid
from compress.evaluate.noise_floor import psnr_floor, run_twice
from compress.evaluate.paired import WINDOW, psnr, ssim
from compress.models.zoo.classifier import (
    Judgement,
    classifier_folder,
    judge,
    load_classifier,
    reference_features,
    reference_statistics,
)
from compress.report.figures import side_by_side
from compress.report.model import Artefact, Metric, Table
from compress.stages.evaluate.bank import draw_images, images
from compress.stages.evaluate.base import EvaluationContext, Findings
from compress.stages.evaluate.settings import Generation, Paired, onnx_count

FLOOR_IMAGES = 32
SHOWN = 10


def _count(settings: Paired | Generation, artefact: Artefact) -> int:
    return onnx_count(settings) if artefact == "onnx" else settings.n


def run_paired(settings: Paired, context: EvaluationContext) -> Findings:
    """PSNR and SSIM of each artefact's images against the original's, and a row of each to look at."""
    reference = images(context, "reference", max(settings.n, _count(settings, "onnx")))
    findings, rows = Findings(), {}
    for artefact in context.compressed():
        found = images(context, artefact, _count(settings, artefact))
        same = reference[: len(found)]
        findings.metrics += psnr(same, found, artefact=artefact, seed=context.seed)
        if min(found.shape[-2:]) >= WINDOW:  # SSIM's window does not fit into smaller images
            findings.metrics.append(ssim(same, found, artefact=artefact, seed=context.seed))
        rows[artefact] = found[:SHOWN]
    runs = run_twice(lambda: draw_images(context, "reference", FLOOR_IMAGES))
    findings.metrics += psnr_floor(runs, seed=context.seed)
    note = f"{context.sampler.kind}, {context.sampler.steps} steps, guidance {context.sampler.guidance_scale:g}"
    if (labels := context.conditions.labels_of(range(SHOWN))) is not None:
        note += f"; classes {', '.join(map(str, labels.tolist()))}"
    findings.figures += side_by_side(reference[:SHOWN], {str(k): v for k, v in rows.items()}, SHOWN, note=note)
    return findings


def run_generation(settings: Generation, context: EvaluationContext) -> Findings:
    """Class accuracy and feature distances of each artefact's images, with paired differences from the original's.

    Raises:
        RecipeError: no bundled classifier knows this model's images.
    """
    if context.judge is None:
        raise RecipeError("`generation` needs a classifier, and none is bundled for this model", hint="use `paired`")
    classifier = load_classifier(classifier_folder(context.judge))
    largest = max(_count(settings, artefact) for artefact in context.subjects)
    labels = context.conditions.labels_of(range(largest))
    if labels is None:
        raise RecipeError("`generation` needs class labels", hint="set calibration.conditions to {kind: classes}")
    reference = judge(classifier, images(context, "reference", largest))
    findings = Findings(metrics=_alone(reference, labels, "reference", settings.n, context.seed))
    for artefact in context.compressed():
        n = _count(settings, artefact)
        found = judge(classifier, images(context, artefact, n))
        findings.metrics += _alone(found, labels, artefact, n, context.seed)
        findings.metrics += _against(reference, found, labels[:n], artefact, context.seed)
    findings.tables.append(_floor_table(settings.n, context.seed))
    return findings


def _alone(found: Judgement, labels: Tensor, artefact: Artefact, n: int, seed: int) -> list[Metric]:
    features = found.features[:n]
    return [
        class_accuracy(found.logits[:n], labels[:n], artefact=artefact, seed=seed),
        frechet_distance(features, reference_statistics("test"), artefact=artefact, seed=seed),
        kid(features, reference_features().features, artefact=artefact, seed=seed),
    ]


def _against(reference: Judgement, found: Judgement, labels: Tensor, artefact: Artefact, seed: int) -> list[Metric]:
    n = len(labels)
    before, after, statistics = reference.features[:n], found.features, reference_statistics("test")
    return [
        class_accuracy_drop(reference.logits[:n], found.logits, labels, artefact=artefact, seed=seed),
        frechet_increase(before, after, statistics, artefact=artefact, seed=seed),
    ]


def _floor_table(n: int, seed: int) -> Table:
    """What real images score, so that a distance can be read: test digits against the training statistics.

    Against the test statistics they would score too low, since those contain them.
    """
    real = reference_features().features
    count = min(n, len(real))
    floor = frechet_floor(real, reference_statistics("train"), count, seed)
    return Table(
        title="Fréchet floor",
        columns=["images", "against", "n", "frechet_distance"],
        rows=[["real test digits", "real training digits", count, round(floor, 4)]],
        note="The distance falls with n even for real images; compare values of equal n only.",
    )
