"""What is known of a unit once it is learned: its losses, and the tensors that an interrupted run needs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from compress.quantize.simulate import SimulatedPart

Phase = Literal["rounding", "steps"]


class UnitReport(NamedTuple):
    """What learning did to the error of a unit, over all calibration rows; losses are in the unit's own units.

    Attributes:
        nearest_loss: before learning: with weights rounded to nearest, or with the measured input scales.
        last_loss: after it, rounded hard, of what was kept.
        soft_loss: after it with h(V) itself; the gap to `last_loss` is what the final rounding costs.
        settled: share of the h(V) within 1e-2 of 0 or 1.
        kept: whether the learned values were better and are kept.
        seconds: of the whole unit, capturing included.
    """

    name: str
    phase: Phase
    nearest_loss: float
    last_loss: float
    soft_loss: float
    settled: float
    kept: bool
    seconds: float

    @property
    def first_loss(self) -> float:
        """The loss before learning: AdaRound's V begins as rounding to nearest."""
        return self.nearest_loss

    def numbers(self) -> Tensor:
        """Everything but name and phase, float64 `[6]`."""
        return torch.tensor([float(value) for value in self[2:]], dtype=torch.float64)

    @classmethod
    def of(cls, name: str, phase: Phase, numbers: Tensor) -> Self:
        """The inverse of `numbers`."""
        nearest, last, soft, settled, kept, seconds = numbers.tolist()
        return cls(name, phase, nearest, last, soft, settled, bool(kept), seconds)

    def line(self) -> str:
        """For the log: `down_blocks.0.resnets.0  loss 1.20e-03 -> 4.10e-04`."""
        text = f"{self.name}  loss {self.nearest_loss:.2e} -> {self.last_loss:.2e}"
        if self.kept:
            return text
        return f"{text}  ({'rounding to nearest' if self.phase == 'rounding' else 'the measured scales'} kept)"


def learned_tensors(phase: Phase, parts: Sequence[SimulatedPart]) -> dict[str, Tensor]:
    """What was learned: codes, or scales, by number."""
    if phase == "rounding":
        return {f"codes.{i}": part.codes() for i, part in enumerate(parts)}
    found = [None if part.inputs is None else part.inputs.scale for part in parts]
    return {f"scale.{i}": scale for i, scale in enumerate(found) if scale is not None}


def restore(phase: Phase, parts: Sequence[SimulatedPart], tensors: Mapping[str, Tensor]) -> None:
    """Give the parts what `learned_tensors` gave of them."""
    for i, part in enumerate(parts):
        if phase == "rounding":
            part.finish_rounding(tensors[f"codes.{i}"].to(part.weight.device))
        elif part.inputs is not None and part.inputs.scale is not None:
            part.inputs.scale.data.copy_(tensors[f"scale.{i}"])
