"""TFMQ-DM: keep what the blocks are told of the timestep, by learning that part of the model apart from any image.

Huang et al., "TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models" (CVPR 2024). The time embedding
and every block's projection of it form one unit (temporal information block, their section 4.1), whose rounding is
learned first and without images (TIAR, 4.2); the remaining units follow with AdaRound; static inputs get a scale for
each timestep, by minimum and maximum (finite set calibration, 4.3), and no scale is learned.

Departures from the paper and its code:
- diffusers adds the class embedding to the time embedding, so the block is a function of both: it learns from every
  timestep of the trajectory with every class and the one for none. The released code runs it on the image set's
  timesteps, in batches of 32; here all pairs are one batch, unless the model is large and has many classes.
- Each block of a DiT holds a copy of the embedder. Equal copies are learned once and rounded alike; if a checkpoint's
  copies differ, each is learned.
- Within the block the range of a timestep is that of all its classes. For other layers the released code runs the
  sampler anew for each timestep; here the logged trajectory is run once, the original's, through rounded weights and
  inputs in floating point. Its running average starts with the first of the shuffled batches of 16.
- Scales are chosen by the timestep nearest to a sample's own t, never by counting the sampler's steps.
- Dynamic inputs have a scale for each token, found at run time: finite set calibration passes them over.
- Activations are rounded at the inputs of linear and convolution layers; attention products stay in floating point, as
  in the released code, whose quantizers for them are never switched on.
- `embeddings: cached`, an option of the follow-up paper (TPAMI 2025): the time embedding becomes a table of its
  full-precision outputs at the calibrated timesteps. The class embedding, a table already, is added as before.

`mode: compat` follows the released code: every static input gets a scale per timestep (the paper: those of the block);
input and output convolution and the first linear of the time embedding stay in floating point, and so do the inputs of
its second linear and of the first residual block's first convolution; 1x1 shortcuts and downsampling convolutions are
not quantized; the engine's `compat` sums errors over dimension 1. It does not reproduce quantizer sets that are chosen
by a loop counter or by the first sample's t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from pydantic import Field

from compress.calibration.trajectory import Trajectory
from compress.errors import ModelError, RecipeError
from compress.models.adapter import LayerInfo, Role
from compress.models.conditioning import conditioning_grid
from compress.quantize.cached_embeddings import embeds_time
from compress.quantize.calibrated import (
    LearnedRounding,
    Simulation,
    learn_weights,
    open_simulation,
    packed_layers,
    require_integer_grid,
)
from compress.quantize.finite_set import calibrate_block, calibrate_layers, with_timestep_scales
from compress.quantize.job import Method, QuantizedLayer, QuantizeJob, Surroundings
from compress.quantize.reconstruct import RoundingSettings
from compress.quantize.rules import Assignment
from compress.quantize.simulate import set_state
from compress.quantize.temporal import TemporalBlock
from compress.quantize.temporal_rounding import learn_temporal_block


class Tfmq(LearnedRounding):
    """Learn the time path without images, then the other units; a scale per timestep for static inputs."""

    kind: Literal["tfmq"] = "tfmq"
    finite_set: Literal["time", "all"] | None = Field(
        None,
        description="Static inputs with a scale for each timestep: those of the time path, or all of them; by default "
        "as in the paper (time), with `mode: compat` as in the released code (all).",
    )
    temporal_iterations: int | None = Field(
        None, ge=1, description="Steps of Adam for the time path, which are cheap; `iterations` when null."
    )
    embeddings: Literal["live", "cached"] = Field(
        "live",
        description="cached: the time embedding becomes a table of its full-precision values at the calibrated "
        "timesteps; the model then knows no others.",
    )

    def temporal_rounding(self) -> RoundingSettings:
        """Settings for the temporal block."""
        return self.rounding().model_copy(update={"iterations": self.temporal_iterations or self.iterations})

    @property
    def per_timestep(self) -> Literal["time", "all"]:
        """`finite_set`, or the default of the mode."""
        return self.finite_set or ("time" if self.mode == "paper" else "all")


def prepare(settings: Tfmq, assignments: Sequence[Assignment], around: Surroundings) -> list[Assignment]:
    """Scales per timestep for static inputs, and in `compat` the released code's exceptions.

    Raises:
        RecipeError: a format has no integer grid, or the model does not tell what depends on timestep and class alone.
    """
    require_integer_grid("tfmq", assignments)
    try:
        inside = around.conditioning()
    except ModelError as error:
        raise RecipeError(f"`tfmq` does not suit this model: {error.message}", hint="use `q_diffusion`") from error
    if settings.mode == "compat":
        assignments = _released_exceptions(assignments, inside)
    if settings.embeddings == "cached":
        assignments = [_kept(a) if embeds_time(a.info) and a.info.name in inside else a for a in assignments]
    chosen = inside if settings.per_timestep == "time" else {a.info.name for a in assignments}
    timesteps = cache(around.timesteps)
    return [_timed(a, timesteps) if a.info.name in chosen else a for a in assignments]


def run(settings: Tfmq, job: QuantizeJob) -> Iterator[QuantizedLayer]:
    """The temporal block, the other units in order, then the scales per timestep."""
    everything = settings.per_timestep == "all"
    with open_simulation(job, settings.ranges, inputs=settings.inputs, mode=settings.mode) as simulation:
        calibration, layers = simulation.calibration, simulation.layers
        block = TemporalBlock(calibration.adapter, simulation.model)
        grid = conditioning_grid(calibration.adapter, visited_timesteps(calibration.trajectory()))
        block.check(grid)
        rounding = settings.temporal_rounding()
        report = learn_temporal_block(block, layers, grid, rounding, seed=job.seed, work=calibration.work)
        losses = f"loss {report.nearest_loss:.2e} -> {report.last_loss:.2e}"
        calibration.progress.note(f"{report.name}, {len(grid)} pairs of timestep and class: {losses}")
        learn_weights(simulation, settings.rounding(), frozen=frozenset(block.layers).intersection(layers))
        set_state(layers, rounding="hard", activations=False)
        calibrate_block(block, layers, grid)
        if everything:
            _calibrate_others(simulation, block, job.seed)
        _note_dynamic(simulation)
        yield from packed_layers(simulation)


def visited_timesteps(trajectory: Trajectory) -> tuple[float, ...]:
    """Every timestep of the trajectory once, ascending."""
    return tuple(sorted({t for batch in trajectory.batches(256, halves=False) for t in batch.t.tolist()}))


def _calibrate_others(simulation: Simulation, block: TemporalBlock, seed: int) -> None:
    """Scales per timestep outside the block, with every weight rounded and inputs in floating point."""
    calibration, trajectory = simulation.calibration, simulation.calibration.trajectory()
    others = {name: layer for name, layer in simulation.layers.items() if name not in block.layers}
    if not with_timestep_scales(others):
        return
    calibration.progress.start("finite set calibration", len(trajectory))
    advance = calibration.progress.advance
    calibrate_layers(calibration.adapter, simulation.model, others, trajectory, seed=seed, advance=advance)


def _note_dynamic(simulation: Simulation) -> None:
    inputs = [part.inputs for layer in simulation.layers.values() for part in layer.operators() if part.inputs]
    dynamic = sum(found.scale is None for found in inputs)
    if dynamic:
        simulation.calibration.progress.note(
            f"{dynamic} inputs have a scale for each token, found at run time: they get none for each timestep"
        )


def _timed(assignment: Assignment, timesteps: Callable[[], tuple[float, ...]]) -> Assignment:
    """The assignment with a scale per timestep, if its input has a static one."""
    spec = assignment.spec
    if spec is None or spec.activations is None or spec.activations.mode != "static":
        return assignment
    activations = replace(spec.activations, timesteps=timesteps())
    return replace(assignment, spec=replace(spec, activations=activations))


def _kept(assignment: Assignment) -> Assignment:
    return replace(assignment, spec=None)


def _released_exceptions(assignments: Sequence[Assignment], inside: frozenset[str]) -> list[Assignment]:
    """What the released code leaves in floating point: whole layers, or only their inputs."""
    convolutions = [a.info for a in assignments if a.info.kind == "conv2d" and a.info.block is not None]
    first = convolutions[0].name if convolutions else ""

    def keeps(info: LayerInfo) -> bool:
        ends = info.role in (Role.IN_PROJECTION, Role.OUT_PROJECTION)
        pointwise = info.kind == "conv2d" and info.name.endswith("conv_shortcut")
        return (
            ends or pointwise or ".downsamplers." in info.name or (embeds_time(info) and info.name.endswith("linear_1"))
        )

    def keeps_input(info: LayerInfo) -> bool:
        return info.name == first or (embeds_time(info) and info.name.endswith("linear_2"))

    return [_kept(a) if keeps(a.info) else _weights_only(a) if keeps_input(a.info) else a for a in assignments]


def _weights_only(assignment: Assignment) -> Assignment:
    spec = assignment.spec
    return assignment if spec is None else replace(assignment, spec=replace(spec, activations=None))


def needs_trajectory(settings: Tfmq) -> bool:
    """Always: it tells the timesteps, and the units learn from it."""
    return True


METHOD = Method(
    name="tfmq",
    title="TFMQ-DM",
    citation="Huang et al. 2024, TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models, CVPR, "
    "arXiv 2311.16503",
    summary="Learns the rounding of the time path without images, then of the blocks; a scale per timestep for inputs.",
    settings=Tfmq,
    run=run,
    prepare=prepare,
    needs_trajectory=needs_trajectory,
    caches_embeddings=lambda settings: settings.embeddings == "cached",
)
