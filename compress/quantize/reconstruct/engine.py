"""The reconstruction engine: learns one unit of a simulated model at a time (BRECQ, Li et al. 2021; Q-Diffusion, 2023).

For each unit it runs the model over the calibration rows, keeps what the unit receives and should return (in memory if
it is little, else on disk), and learns from mini-batches of it. What is learned is written to the job's work folder
unit by unit; a killed run reads it back and ends with the same bytes.

Departures from the released code: the model stays in eval mode (theirs fits with dropout on after caching); units with
nothing to learn are skipped (theirs crash on units without weights); the skip half of a split layer is driven to 0 or 1
like the rest (`compat` leaves it out, as theirs does); where learning ends with a larger error than it began with, the
beginning is kept (`keep_better: false` turns that off); scales of inputs cannot become zero or negative.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from compress.calibration import Denoise, denoise_with
from compress.calibration.sampler import stream_seed
from compress.calibration.unit_inputs import Place, TrajectoryRows, UnitInputs, capture_unit
from compress.config import content_hash
from compress.models.adapter import Condition
from compress.quantize.clock import Clock
from compress.quantize.job import Calibration
from compress.quantize.reconstruct.decide import decide_rounding, decide_steps
from compress.quantize.reconstruct.finished import Finished
from compress.quantize.reconstruct.learn import Error
from compress.quantize.reconstruct.losses import Mode, reconstruction_loss
from compress.quantize.reconstruct.report import Phase, UnitReport, learned_tensors, restore
from compress.quantize.reconstruct.settings import RoundingSettings, StepSettings
from compress.quantize.reconstruct.units import Unit, find_units
from compress.quantize.simulate import SimulatedLayer, SimulatedPart, set_state

MEMORY_SHARE = 4  # captured rows may take one part in so many of the memory budget


class Reconstruction:
    """Learns the units of a simulated model, in any order, each unit once or twice (rounding, then steps).

    Results of a unit depend on the seed, its name, the phase and what the layers before it compute, on nothing else.

    Args:
        model: the model that `layers` were put into, in eval mode on the calibration's device.
        layers: all simulated layers by name, with their grids and input scales set.
        clock: what their scales per timestep are picked by, and installed on the model; None without such.
        rows: how many logged denoiser inputs to learn from, spread evenly over noise levels; None for all.
        mode: `compat` for the loss axis and the regularizer of Q-Diffusion's released code.
        batch_size: rows that run through the model at a time.
    """

    def __init__(
        self,
        calibration: Calibration,
        model: nn.Module,
        layers: Mapping[str, SimulatedLayer],
        clock: Clock | None,
        seed: int,
        rows: int | None = None,
        mode: Mode = "paper",
        *,
        batch_size: int = 16,
    ) -> None:
        self.calibration, self.model, self.layers, self.clock = calibration, model, layers, clock
        self.seed, self.mode = seed, mode
        trajectory = calibration.trajectory()
        self.rows = TrajectoryRows(trajectory, rows, seed)
        self.finished = Finished(calibration.work)
        self.place = Place(
            calibration.work / "rows", memory_cap(calibration.memory_budget), calibration.device, batch_size
        )
        self._rounded: set[str] = set()
        self._denoise = denoise_with(calibration.adapter, model)
        self._facts = {"trajectory": trajectory.hash, "rows": rows, "seed": seed, "mode": mode}
        set_state(layers, rounding="off", activations=False)
        example = next(self.rows.batches(1)).to(calibration.device)
        self.units = find_units(calibration.adapter, model, layers, example)

    def learn_rounding(
        self, unit: Unit, settings: RoundingSettings, *, frozen: frozenset[str] = frozenset()
    ) -> UnitReport:
        """Phase W: the rounding of the unit's weights, with inputs in floating point; its layers stay `hard` after it.

        The asymmetric scheme: the unit receives what the layers rounded before compute, and should return what full
        precision returns.

        Args:
            frozen: layers with decided codes, or the nearest ones; they compute hard and are not learned.

        Raises:
            UnsupportedLayer: the unit cannot be captured.
            RunError: its outputs are not finite.
            OutputError: the disk is full.
        """
        self.round(frozen)
        parts = self._parts(name for name in unit.layers if name not in self._rounded)
        report = self._once("rounding", unit, settings, parts, lambda: self._learn_rounding(unit, settings))
        self.round(unit.layers)
        return report

    def learn_steps(self, unit: Unit, settings: StepSettings, *, asymmetric: bool) -> UnitReport:
        """Phase A: the static scales of the unit's inputs; zero points stay, weights are rounded hard.

        Dynamic scales have nothing to learn.

        Args:
            asymmetric: the unit receives what the quantized model computes before it, weights and inputs rounded;
                otherwise what full precision computes.

        Raises:
            UnsupportedLayer: the unit cannot be captured.
            RunError: its outputs are not finite.
            OutputError: the disk is full.
        """
        self.round(unit.layers)
        parts = [part for part in self._parts(unit.layers) if part.inputs is not None and part.inputs.scale is not None]

        def learn() -> UnitReport:
            return self._learn_steps(unit, settings, parts, asymmetric)

        return self._once("steps", unit, settings, parts, learn, asymmetric=asymmetric)

    def round(self, names: Iterable[str]) -> None:
        """Let these layers compute with their codes from now on: those decided, else the nearest ones."""
        for part in self._parts(name for name in names if name not in self._rounded):
            part.finish_rounding()
        self._rounded.update(names)

    def full_precision(self, sample: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One forward with everything switched off: the original model."""
        set_state(self.layers, rounding="off", activations=False)
        return self._denoise(sample, t, condition)

    def rounded(self, sample: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One forward with the weights rounded that are decided, and inputs in floating point."""
        self._switch_to_rounded()
        return self._denoise(sample, t, condition)

    def quantized(self, sample: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One forward with all weights and inputs rounded."""
        set_state(self.layers, rounding="hard", activations=True)
        return self._denoise(sample, t, condition)

    def generator(self, phase: str, name: str) -> torch.Generator:
        """Draws the mini-batches of one unit in one phase, the same whatever was learned before."""
        return torch.Generator().manual_seed(stream_seed(self.seed, f"{phase}:{name}", 0))

    def _learn_rounding(self, unit: Unit, settings: RoundingSettings) -> UnitReport:
        started = time.perf_counter()
        layers = [self.layers[name] for name in unit.layers if name not in self._rounded]
        parts = [part for layer in layers for part in layer.operators()]
        driven = [part for part in parts if self.mode == "paper" or part.part.name != "skip"]
        with self._capture(unit, inputs=self.rounded, targets=self.full_precision) as inputs:
            self._switch_to_rounded()
            error, draws = self._error(unit, inputs, settings.norm), self.generator("rounding", unit.name)
            report = decide_rounding(unit.name, layers, error, len(inputs), settings, draws, driven=driven)
        return report._replace(seconds=time.perf_counter() - started)

    def _learn_steps(
        self, unit: Unit, settings: StepSettings, parts: list[SimulatedPart], asymmetric: bool
    ) -> UnitReport:
        started = time.perf_counter()
        scales = [part.inputs.scale for part in parts if part.inputs is not None and part.inputs.scale is not None]
        sides: tuple[Denoise, Denoise | None] = (self.full_precision, None)
        if asymmetric:
            sides = (self.quantized, self.full_precision)
        with self._capture(unit, inputs=sides[0], targets=sides[1]) as inputs:
            set_state([self.layers[name] for name in unit.layers], rounding="hard", activations=True)
            error, draws = self._error(unit, inputs, settings.norm), self.generator("steps", unit.name)
            report = decide_steps(unit.name, scales, error, len(inputs), settings, draws)
        return report._replace(seconds=time.perf_counter() - started)

    def _once(
        self,
        phase: Phase,
        unit: Unit,
        settings: RoundingSettings | StepSettings,
        parts: list[SimulatedPart],
        learn: Callable[[], UnitReport],
        **facts: bool,
    ) -> UnitReport:
        """What an earlier run finished, read back into `parts`, or `learn()`, written down. Nothing without parts."""
        if not parts:
            return UnitReport(unit.name, phase, 0.0, 0.0, 0.0, 1.0, True, 0.0)
        name = f"{phase}-{unit.name}"
        learned = sorted(layer for layer in unit.layers if layer not in self._rounded)
        key = content_hash([unit, learned, settings, self._facts, facts])
        tensors = self.finished.load(name, key)
        if tensors is None:
            report = learn()
            self.finished.save(name, key, learned_tensors(phase, parts) | {"report": report.numbers()})
        else:
            restore(phase, parts, tensors)
            report = UnitReport.of(unit.name, phase, tensors["report"])
        self.calibration.progress.note(report.line())
        return report

    def _capture(self, unit: Unit, *, inputs: Denoise, targets: Denoise | None) -> UnitInputs:
        return capture_unit(self.model, unit.name, self.rows, self.place, inputs=inputs, targets=targets)

    def _error(self, unit: Unit, inputs: UnitInputs, norm: float) -> Error:
        """The unit's mean loss on given rows, in whatever state its layers are."""
        module = self.model.get_submodule(unit.name)

        def error(rows: Tensor) -> Tensor:
            batch = inputs.batch(rows)
            if self.clock is not None:
                self.clock.look(inputs.timesteps[rows].to(self.calibration.device), len(rows))
            outputs = inputs.outputs(module(*batch.args, **batch.kwargs))
            return reconstruction_loss(outputs, batch.target, norm, self.mode)

        return error

    def _switch_to_rounded(self) -> None:
        set_state(self.layers, rounding="off", activations=False)
        set_state([self.layers[name] for name in self._rounded], rounding="hard")

    def _parts(self, names: Iterable[str]) -> list[SimulatedPart]:
        return [part for name in names for part in self.layers[name].operators()]


def memory_cap(budget: int | None) -> int:
    """Bytes that captured rows may take in memory: a quarter of the budget, or of the machine's memory."""
    return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if budget is None else budget) // MEMORY_SHARE
