"""The `noise_error` entry."""

from __future__ import annotations

from compress.evaluate.noise_error import noise_error
from compress.evaluate.noise_floor import noise_error_floor, run_twice
from compress.stages.evaluate.bank import noise_predictions, stored_pairs
from compress.stages.evaluate.base import EvaluationContext, Findings
from compress.stages.evaluate.settings import NoiseError

FLOOR_PAIRS = 256


def run(settings: NoiseError, context: EvaluationContext) -> Findings:
    """Error of each artefact's predicted noise, and of the original's against itself at another thread count."""
    pairs = stored_pairs(context, settings.n)
    reference = noise_predictions(context, "reference", pairs)
    findings = Findings()
    for artefact in context.compressed():
        predicted = noise_predictions(context, artefact, pairs)
        findings.metrics += noise_error(
            reference,
            predicted,
            pairs.sigma,
            artefact=artefact,
            bands=settings.bands,
            seed=context.seed,
            groups=pairs.image,
        )
    few = stored_pairs(context, min(settings.n, FLOOR_PAIRS))
    runs = run_twice(lambda: noise_predictions(context, "reference", few))
    findings.metrics += noise_error_floor(runs, few.sigma, bands=settings.bands, seed=context.seed)
    return findings
