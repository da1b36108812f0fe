"""The course that methods with learned rounding share: simulate the model, find ranges, learn unit by unit, pack.

    with open_simulation(job, RangeSearch(kind="mse")) as simulation:
        learn_weights(simulation, RoundingSettings())       # phase W
        learn_inputs(simulation, StepSettings())            # phase A
        yield from packed_layers(simulation)

Everything follows from the job: ranges are found anew after a kill, and what was learned lies unit by unit in the job's
work folder (`compress/quantize/reconstruct.py`), so a run that continues ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.errors import RecipeError, RunError
from compress.formats import get_format
from compress.quantize.clock import Clock, install_clock
from compress.quantize.job import Calibration, QuantizedLayer, QuantizeJob
from compress.quantize.ranges import RangeSearch, search_scales
from compress.quantize.reconstruct import Mode, Reconstruction, RoundingSettings, StepSettings, Unit, UnitReport
from compress.quantize.rules import Assignment
from compress.quantize.simulate import SimulatedLayer, simulate


class LearnedRounding(Config):
    """What methods have in common that learn how weights are rounded (AdaRound in BRECQ's units).

    The defaults are those of Q-Diffusion's released code, for W4 and W8 alike. They are meant for hours on a GPU: few
    iterations need a larger learning rate.
    """

    kind: str
    mode: Mode = Field("paper", description="paper: as published, defects mended; compat: with the released code's.")
    ranges: RangeSearch = Field(RangeSearch(kind="mse"), description="How the range of a weight is found.")
    inputs: int | None = Field(None, ge=1, description="Logged denoiser inputs to learn from; all of them when null.")
    iterations: int = Field(20_000, ge=1, description="Steps of Adam for the weights of each unit.")
    batch_size: int = Field(32, ge=1, description="Inputs of one step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam, for the rounding offsets.")
    regularizer: float = Field(0.01, ge=0, description="Weight of the term that pushes every rounding to up or down.")
    warmup: float = Field(0.2, ge=0, lt=1, description="Share of the iterations before that term sets in.")
    beta_start: float = Field(20.0, gt=0, description="Its exponent at first.")
    beta_end: float = Field(2.0, gt=0, description="Its exponent at the end.")

    def rounding(self) -> RoundingSettings:
        """Phase W of the engine."""
        return RoundingSettings(
            iterations=self.iterations,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            regularizer=self.regularizer,
            warmup=self.warmup,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            keep_better=self.mode == "paper",
        )


@dataclass(frozen=True)
class Simulation:
    """A model whose quantized layers are simulated, and the engine that learns their codes and scales.

    Attributes:
        job: what the method was given.
        calibration: of the job.
        model: full precision but for the simulated layers in it; in eval mode, on the calibration's device.
        layers: the simulated layers by name, in the job's order; all switched off at first.
        clock: knows which timestep each sample is at; None without scales for each timestep.
        reconstruction: learns one unit at a time.
    """

    job: QuantizeJob
    calibration: Calibration
    model: nn.Module
    layers: dict[str, SimulatedLayer]
    clock: Clock | None
    reconstruction: Reconstruction

    @property
    def units(self) -> list[Unit]:
        """What is learned together, in the order of computation."""
        return self.reconstruction.units


@contextmanager
def open_simulation(
    job: QuantizeJob,
    search: RangeSearch,
    *,
    inputs: int | None = None,
    mode: Mode = "paper",
    factors: Mapping[str, Tensor] | None = None,
) -> Iterator[Simulation]:
    """The job's model, loaded once, with weight ranges searched and the measured activation scales in place.

    Args:
        search: how the range of every weight is found.
        inputs: logged denoiser inputs to learn from, None for the whole trajectory.
        mode: of the engine, `compat` for the quirks of the released code.
        factors: smoothing factors `[channels]` by the qualified name of the layer's part; 1 where there are none.

    Raises:
        RunError: the job lacks what methods need that run the model, or a static scale was not measured.
    """
    calibration = calibration_of(job)
    model = calibration.load()
    clock = make_clock(job.assignments)
    handle = None if clock is None else install_clock(model, clock)
    try:
        layers = simulate(model, job.assignments, clock)
        start_smoothing(layers.values(), factors or {})
        start_weights(layers.values(), search)
        start_inputs(layers.values(), job)
        engine = Reconstruction(calibration, model, layers, clock, job.seed, inputs, mode)
        yield Simulation(job, calibration, model, layers, clock, engine)
    finally:
        if handle is not None:
            handle.remove()


def calibration_of(job: QuantizeJob) -> Calibration:
    """The job's calibration. Raises RunError when there is none."""
    if job.calibration is None:
        raise RunError("the method runs the model, but was given no calibration", hint="run it as a stage of a recipe")
    return job.calibration


def make_clock(assignments: Sequence[Assignment]) -> Clock | None:
    """A clock for the timesteps that scales are stored for; None when no layer has such.

    Raises:
        RunError: layers disagree about the timesteps.
    """
    specs = [a.spec.activations for a in assignments if a.spec is not None and a.spec.activations is not None]
    known = sorted({spec.timesteps for spec in specs if spec.timesteps})
    if len(known) > 1:
        raise RunError("layers have scales for different timesteps, which one clock cannot tell")
    return Clock(known[0]) if known else None


def start_smoothing(layers: Iterable[SimulatedLayer], factors: Mapping[str, Tensor]) -> None:
    """Take the smoothing factors; they come before the grids, for they are divided out of the weights."""
    for layer in layers:
        for part in layer.operators():
            found = factors.get(part.part.of(layer.name))
            if part.smooth is not None and found is not None:
                part.smooth.copy_(found)


def start_weights(layers: Iterable[SimulatedLayer], search: RangeSearch) -> None:
    """Give every part the grid whose range the search finds; rounding decisions made before are dropped."""
    for layer in layers:
        for part in layer.operators():
            part.set_grid(search_scales(part.weight, part.spec.weights, search))


def start_inputs(layers: Iterable[SimulatedLayer], job: QuantizeJob) -> None:
    """Give every static input the scale that the stage measured. Raises RunError where there is none."""
    for layer in layers:
        for part in layer.operators():
            if part.inputs is None or part.inputs.scale is None:
                continue
            name = part.part.of(layer.name)
            if name not in job.static_scales:
                raise RunError("no activation scale was measured for this input", where=name)
            part.inputs.set(job.static_scales[name])


def learn_weights(
    simulation: Simulation, settings: RoundingSettings, *, frozen: frozenset[str] = frozenset()
) -> list[UnitReport]:
    """Phase W: the rounding of every unit's weights, in the order of computation; `frozen` layers keep their codes."""

    def learn(unit: Unit) -> UnitReport:
        return simulation.reconstruction.learn_rounding(unit, settings, frozen=frozen)

    units = [unit for unit in simulation.units if not frozen.issuperset(unit.layers)]
    return _each(simulation, "learn rounding", units, learn)


def learn_inputs(simulation: Simulation, settings: StepSettings, *, asymmetric: bool = False) -> list[UnitReport]:
    """Phase A: the static input scales of every unit that has any; what is rounded dynamically has none to learn.

    Args:
        asymmetric: units see what the quantized model computes before them; otherwise what the original does.
    """

    def learn(unit: Unit) -> UnitReport:
        return simulation.reconstruction.learn_steps(unit, settings, asymmetric=asymmetric)

    static = {name for name, layer in simulation.layers.items() if has_static_input(layer)}
    units = [unit for unit in simulation.units if not static.isdisjoint(unit.layers)]
    if not units:
        simulation.calibration.progress.note("no input has a static scale, so no scale is learned")
    return _each(simulation, "learn input scales", units, learn)


def has_static_input(layer: SimulatedLayer) -> bool:
    """Whether any operator of the layer stores a scale of its input."""
    return any(part.inputs is not None and part.inputs.scale is not None for part in layer.operators())


def packed_layers(simulation: Simulation) -> Iterator[QuantizedLayer]:
    """Every layer as it is stored, in the job's order; each is reported as done."""
    for assignment in simulation.job.assignments:
        name = assignment.info.name
        yield simulation.layers[name].quantized()
        simulation.job.tick(name)


def require_integer_grid(method: str, assignments: Sequence[Assignment]) -> None:
    """Refuse what has no evenly spaced grid: weights and inputs (if they are rounded) must be integers.

    Raises:
        RecipeError: a layer has other formats; names the layer.
    """
    for assignment in assignments:
        spec = assignment.spec
        if spec is None:
            continue
        formats = [spec.weights.format] + ([] if spec.activations is None else [spec.activations.format])
        for name in formats:
            if get_format(name).kind != "int":
                raise RecipeError(
                    f"`{method}` works on integer grids, `{assignment.info.name}` has {name}",
                    hint="use int8, int4, int3 or int2 weights and int8 or int4 activations, or method `nearest`",
                )


def _each(
    simulation: Simulation, title: str, units: Sequence[Unit], learn: Callable[[Unit], UnitReport]
) -> list[UnitReport]:
    """Run one phase over the units, with progress and a closing line about what it won."""
    progress = simulation.calibration.progress
    if not units:
        return []
    progress.start(title, len(units))
    reports = []
    for unit in units:
        reports.append(learn(unit))
        progress.advance()
    before, after = sum(r.nearest_loss for r in reports), sum(r.last_loss for r in reports)
    share = f", {after / before:.0%} of before" if before > 0 else ""
    seconds = sum(report.seconds for report in reports)
    progress.note(f"{title}: {len(reports)} units in {seconds:.1f} s; their error is {after:.3g}{share}")
    return reports
