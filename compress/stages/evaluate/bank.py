"""Images and predictions of every artefact, drawn once, in cached chunks that all entries share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.calibration.policies import AllTimesteps
from compress.calibration.sampler import Draw, call_timesteps, make_scheduler, sample_batches
from compress.calibration.trajectory import Record, Trajectory, TrajectorySpec, log_trajectory, spec_hash
from compress.report.model import Artefact
from compress.stages.evaluate.base import CHUNK, EvaluationContext

EVALUATION_SEED = 1_000_003  # added to the recipe's seed: evaluation never sees the noise that calibration saw


def images(context: EvaluationContext, artefact: Artefact, n: int) -> Tensor:
    """The first `n` images `[n, c, h, w]` of an artefact; image i comes from the same noise for every artefact."""
    starts = range(0, n, CHUNK)
    context.progress.start(f"images of {artefact}", len(starts) * CHUNK)
    parts = []
    for first in starts:
        inputs = {**_drawing(context, artefact), "first": first, "count": CHUNK}
        step = context.steps.step(f"images-{artefact}", inputs, partial(_draw, context, artefact, first))
        parts.append(load_file(step.folder / "images.safetensors")["images"])
        context.progress.advance(CHUNK)
    return torch.cat(parts)[:n]


def _drawing(context: EvaluationContext, artefact: Artefact) -> dict[str, Any]:
    """Everything that determines an artefact's images, besides their numbers."""
    return {
        "subject": context.subjects[artefact].key,
        "sampler": context.sampler,
        "conditions": context.conditions.facts,
        "seed": context.seed,
        "scheduler": {key: str(value) for key, value in context.scheduler_config.items()},
        "device": context.device,
        "torch": str(torch.__version__),
    }


def _draw(context: EvaluationContext, artefact: Artefact, first: int, folder: Path) -> None:
    save_file({"images": draw_images(context, artefact, CHUNK, first)}, folder / "images.safetensors")


def draw_images(context: EvaluationContext, artefact: Artefact, n: int, first: int = 0) -> Tensor:
    """Images numbered `first` to `first + n - 1`, drawn now."""
    draw = Draw(n, context.adapter.sample_shape(), evaluation_seed(context), first, CHUNK, context.device)
    scheduler = make_scheduler(context.sampler, context.scheduler_config)
    return sample_batches(context.denoiser(artefact), scheduler, context.sampler, context.conditions, draw)


def evaluation_seed(context: EvaluationContext) -> int:
    """Seed of the noise that evaluation starts from."""
    return context.seed + EVALUATION_SEED


def stored_pairs(context: EvaluationContext, n: int) -> Record:
    """`n` denoiser inputs the original met while sampling from evaluation's noise, spread over the noise levels."""
    calls = len(call_timesteps(make_scheduler(context.sampler, context.scheduler_config), context.sampler))
    halves = 2 if context.sampler.guided else 1
    spec = TrajectorySpec(
        sampler=context.sampler,
        scheduler_config=context.scheduler_config,
        conditions=context.conditions,
        timesteps=AllTimesteps(),
        samples=-(-n // (calls * halves)),
        seed=evaluation_seed(context),
        model_hashes={"model": context.subjects["reference"].key},
        batch_size=CHUNK,
        device=context.device,
    )

    def build(folder: Path) -> None:
        log_trajectory(context.adapter, context.denoiser("reference"), spec, folder)

    step = context.steps.step("pairs", {"spec": spec_hash(context.adapter, spec)}, build)
    return Trajectory.open(step.folder).pairs(n, context.seed)


def noise_predictions(context: EvaluationContext, artefact: Artefact, pairs: Record) -> Tensor:
    """Predicted noise (epsilon) `[n, c, h, w]` of an artefact on stored pairs."""
    denoise, schedule = context.denoiser(artefact), context.adapter.noise_schedule()
    context.progress.start(f"predictions of {artefact}", len(pairs.t))
    found = []
    for start in range(0, len(pairs.t), CHUNK):
        batch = pairs.part(start, start + CHUNK).to(context.device)
        with torch.inference_mode():
            output = denoise(batch.sample, batch.t, batch.condition)
            found.append(schedule.to_epsilon(output, batch.sample, batch.t).cpu())
        context.progress.advance(len(batch.t))
    return torch.cat(found)
