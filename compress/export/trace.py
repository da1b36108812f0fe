"""Tracing a denoiser: one flat function of sample, timestep and conditions, with a free batch size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ExportError
from compress.models.adapter import Adapter, DenoiserInputs

OUTPUT = "prediction"
EXAMPLE_BATCH = 2  # torch treats 0 and 1 as special
LARGEST_BATCH = 63  # diffusers' upsampling takes another path from 64 on, a bound where tracing insists on one


class FlatDenoiser(nn.Module):
    """`adapter.denoise` with positional tensors: sample, timestep, then conditions in the order of `names`."""

    def __init__(self, adapter: Adapter, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.adapter, self.model, self.names = adapter, model, names

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        return self.adapter.denoise(self.model, sample, timestep, dict(zip(self.names, conditions, strict=True)))


@dataclass(frozen=True)
class Traced:
    """An exported program with what its user must know.

    Attributes:
        program: the `torch.export.ExportedProgram`.
        shapes: its `dynamic_shapes`, to be given to `torch.onnx.export` again.
        inputs: the example, in the types the program takes.
        largest_batch: bound of the batch size, or None.
    """

    program: Any
    shapes: Any
    inputs: DenoiserInputs
    largest_batch: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("sample", "timestep", *sorted(self.inputs.condition))


def trace_denoiser(adapter: Adapter, model: nn.Module) -> Traced:
    """The denoiser as a program with a free batch size, a float timestep where the model takes one.

    Raises:
        ExportError: torch cannot trace it; carries torch's reason.
    """
    inputs = adapter.example_inputs(EXAMPLE_BATCH, device=str(_device(model)))
    reasons = []
    for timestep, largest in _attempts(inputs.timestep):
        try:
            return _trace(adapter, model, inputs._replace(timestep=timestep), largest)
        except Exception as error:  # torch.export raises whatever it meets
            reasons.append(error)
    reason = str(reasons[-1]).strip().splitlines()[0]
    raise ExportError(
        f"torch cannot trace {type(model).__name__}: {reason}", hint="the checkpoint is not affected"
    ) from reasons[-1]


def _attempts(timestep: Tensor) -> Iterator[tuple[Tensor, int | None]]:
    """Most general first."""
    for candidate in (timestep.float(), timestep) if not timestep.is_floating_point() else (timestep,):
        yield candidate, None
        yield candidate, LARGEST_BATCH


def _trace(adapter: Adapter, model: nn.Module, inputs: DenoiserInputs, largest: int | None) -> Traced:
    names = tuple(sorted(inputs.condition))
    batch = torch.export.Dim("batch", min=1, max=largest)
    conditions = tuple(inputs.condition[name] for name in names)
    shapes = ({0: batch}, {0: batch}, *([tuple({0: batch} for _ in names)] if names else []))
    with torch.no_grad(), quiet_exporter():
        program = torch.export.export(
            FlatDenoiser(adapter, model, names),
            (inputs.sample, inputs.timestep, *conditions),
            dynamic_shapes=shapes,
            strict=False,
        )
    return Traced(program, shapes, inputs, largest)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says about itself: deprecations inside torch, optional packages it misses."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter((*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device
