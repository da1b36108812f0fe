"""QuEST: fine-tune the few layers that low-bit activations hurt most, and every input scale, against the model itself.

Wang et al., "QuEST: Low-bit Diffusion Model Quantization via Efficient Selective Finetuning" (ICCV 2025). At 4-bit
activations rounding is too large a perturbation for reconstruction alone. The method starts from learned weight
rounding (Q-Diffusion's phase W), gives every calibrated timestep scales of its own, and then trains in two stages,
timestep by timestep: time-embedding projections with their input scales (time-aware alignment, TLA), then attention or
feed-forward weights with all other input scales (critical-module alignment, CMA). No data but the model's own sampling.

    TLA: L_TLA + L_G     L_TLA, L_CMA: sum over the stage's layers of the mean squared error of their outputs
    CMA: L_CMA + L_G     L_G: mean squared error of the model's output

Together that is the paper's L_TLA + L_CMA + 2 L_G. Weight scales, zero points and the learned up or down stay; weights
move under straight-through rounding and may cross into the next level; integers are derived once, at the end.

Departures from the paper and its code:
- At 4-bit activations they have a static scale per input channel and timestep, which no integer product can apply. Here
  the channels' ratios move into the weights (`compress/quantize/smoothing.py`), shared by all timesteps, and one
  scale per tensor and timestep remains. The conditioning path has one set of scales for all timesteps, as in the paper.
- Input scales begin with what the recipe's observer finds at each timestep in the full-precision model; their scripts
  take a running mean (`observer: {kind: ema}`) or, for Stable Diffusion, copy those of one timestep.
- Attention products and the softmax stay in floating point; they are no layers.
- Every timestep gets the same number of epochs; for Stable Diffusion their scripts have 200, 50 and 400.
- Which layers are critical is read from their roles, so that DiTs have them too. Their modulation is what projects the
  embedding, a third of all weights. The bound of 7 % of the parameters that is quoted for LDM-4 is not met by the
  layers that the released code names either: projections 4.2 % and q, k, v 8.8 % of LSUN's LDM-4 (a test counts them).

`mode: compat` has what the released code does: scales for each timestep in the conditioning path too; L_G added once
for each of the stage's layers; no L_CMA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.calibration.capture import run_over
from compress.models.adapter import Role
from compress.quantize.alignment import EMBEDDING_ROLES, CriticalAlignment, Stages, TimeAlignment, fine_tune
from compress.quantize.calibrated import (
    LearnedRounding,
    calibration_of,
    learn_weights,
    open_simulation,
    packed_layers,
    require_integer_grid,
)
from compress.quantize.job import Method, QuantizedLayer, QuantizeJob, Surroundings
from compress.quantize.observers import StaticScale
from compress.quantize.rules import Assignment
from compress.quantize.smoothing import ChannelRanges, Smoothing, factors_by_part
from compress.quantize.spec import ActivationSpec
from compress.quantize.statistics import static_scales
from compress.quantize.tuned import biases_of

BATCH = 64  # denoiser inputs that are measured together
SMOOTHED_BITS = 4  # from here down the paper has a scale for each channel


class Quest(LearnedRounding):
    """Learn rounding, then fine-tune time projections, critical layers and input scales for each timestep."""

    kind: Literal["quest"] = "quest"
    batch_size: int = Field(16, ge=1, description="Inputs of one step while rounding is learned.")
    smoothing: Smoothing | None = Field(
        Smoothing(), description="Ratios of 4-bit input channels folded into weights; null: one scale for all of them."
    )
    wide_ends: bool = Field(
        True, description="Inputs of the first and the last layer of the model have 8 bits where others have fewer."
    )
    time: TimeAlignment = Field(TimeAlignment(), description="Time-aware alignment.")
    critical: CriticalAlignment = Field(CriticalAlignment(), description="Critical-module alignment.")
    backward_batch: int = Field(
        4, ge=1, description="Inputs that go through the model together; gradients of a step add up. Bounds memory."
    )


def prepare(settings: Quest, assignments: Sequence[Assignment], around: Surroundings) -> list[Assignment]:
    """Scales per timestep for static inputs, folded channel ratios at 4 bits, 8 bits at the model's ends.

    Raises:
        RecipeError: a layer has a format without an integer grid.
    """
    require_integer_grid("quest", assignments)
    if not any(_static(a) for a in assignments):
        return list(assignments)
    timesteps = around.timesteps()
    return [_prepared(settings, a, timesteps) for a in assignments]


def _static(assignment: Assignment) -> ActivationSpec | None:
    activations = None if assignment.spec is None else assignment.spec.activations
    return activations if activations is not None and activations.mode == "static" else None


def _prepared(settings: Quest, assignment: Assignment, timesteps: tuple[float, ...]) -> Assignment:
    activations = _static(assignment)
    if activations is None:
        return assignment
    assert assignment.spec is not None
    role, seen = assignment.info.role, assignment.activations
    if settings.wide_ends and role in (Role.IN_PROJECTION, Role.OUT_PROJECTION) and activations.bits < 8:
        activations, seen = replace(activations, format="int8"), seen.model_copy(update={"format": "int8"})
    one_set = settings.mode == "paper" and role in EMBEDDING_ROLES
    activations = replace(activations, timesteps=() if one_set else timesteps)
    smooth = settings.smoothing is not None and activations.bits <= SMOOTHED_BITS
    spec = replace(assignment.spec, activations=activations, smooth=smooth)
    return replace(assignment, spec=spec, activations=seen)


def run(settings: Quest, job: QuantizeJob) -> Iterator[QuantizedLayer]:
    """Measure inputs, learn rounding, align time projections, align critical modules, derive integers."""
    factors, scales = measure(job, settings.smoothing)
    job = replace(job, static_scales=scales)
    with open_simulation(
        job, settings.ranges, inputs=settings.inputs, mode=settings.mode, factors=factors
    ) as simulation:
        learn_weights(simulation, settings.rounding())
        changed = fine_tune(
            simulation, Stages(settings.time, settings.critical, settings.mode, settings.backward_batch)
        )
        biases = biases_of(simulation.layers)
        for layer in packed_layers(simulation):
            has_new = layer.name in changed and layer.name in biases
            yield layer._replace(bias=biases[layer.name].detach().clone() if has_new else layer.bias)


def measure(job: QuantizeJob, settings: Smoothing | None) -> tuple[dict[str, Tensor], dict[str, StaticScale]]:
    """Smoothing factors, and input scales under them, by the qualified names of the layers' parts.

    Both are read from the full-precision model on the whole trajectory.
    """
    calibration = calibration_of(job)
    smoothed = [a for a in job.assignments if a.spec is not None and a.spec.smooth]
    model, trajectory = calibration.load(), calibration.trajectory()
    factors: dict[str, Tensor] = {}
    if settings is not None and smoothed:
        calibration.progress.note(f"measure the input channels of {len(smoothed)} layers")
        ranges = {a.info.name: ChannelRanges(settings, images=a.info.kind == "conv2d") for a in smoothed}
        run_over(calibration.adapter, model, trajectory, {name: r.update for name, r in ranges.items()}, BATCH)
        factors = factors_by_part(smoothed, {name: found.values() for name, found in ranges.items()}, settings)
    calibration.progress.note("measure input scales at every timestep")
    scales = static_scales(
        calibration.adapter, model, trajectory, job.assignments, smooth=factors, batch_size=BATCH, seed=job.seed
    )
    return factors, scales


def needs_trajectory(settings: Quest) -> bool:
    """Always: the targets are what the model gives while it samples."""
    return True


METHOD = Method(
    name="quest",
    title="QuEST",
    citation="Wang et al. 2025, QuEST: Low-bit Diffusion Model Quantization via Efficient Selective Finetuning, ICCV, "
    "arXiv 2402.03666",
    summary="Fine-tunes time projections, attention or feed-forward weights and per-timestep input scales.",
    settings=Quest,
    run=run,
    prepare=prepare,
    needs_trajectory=needs_trajectory,
    observes=False,
    split="shortcut",
)
