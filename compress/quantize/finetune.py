"""Fine-tuning of a quantized model against itself in full precision: weights, biases and static input scales.

The teacher is the model with every twin switched off, so there is one copy of it in memory. Rounding is
straight-through for weights and inputs alike, and what AdaRound decided about up or down stays (Wang et al. 2025,
QuEST).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.calibration.sampler import Denoise
from compress.calibration.trajectory import Record
from compress.errors import RunError
from compress.quantize.simulate import SimulatedLayer, set_state
from compress.quantize.tuned import biases_of

_LEAST_SCALE = 1e-2  # share of an input scale that one step leaves at least: Adam must not step over zero


class Outputs(NamedTuple):
    """What one forward gives: the prediction, and the outputs of watched layers, one for each time that they ran."""

    prediction: Tensor
    layers: dict[str, list[Tensor]]


class Objective(NamedTuple):
    """`local` times the sum over `layers` of the mean squared error of their outputs, `overall` times the model's."""

    layers: tuple[str, ...]
    local: float
    overall: float


class Losses(NamedTuple):
    """Both terms of an objective, not weighted; tensors of one element."""

    local: Tensor
    overall: Tensor

    def total(self, objective: Objective) -> Tensor:
        """What is minimised."""
        return objective.local * self.local + objective.overall * self.overall


class Student:
    """A model of simulated layers that learns from itself with all of them switched off.

    Args:
        denoise: calls the model.
        layers: its twins by name; weights hard and inputs rounded whenever the student answers.
    """

    def __init__(self, denoise: Denoise, layers: Mapping[str, SimulatedLayer]) -> None:
        self.denoise, self.layers = denoise, layers
        self.biases = biases_of(layers)
        self.first_biases = {name: bias.detach().clone() for name, bias in self.biases.items()}
        for layer in layers.values():
            layer.requires_grad_(False)
        set_state(layers, rounding="hard", activations=True)

    @torch.no_grad()
    def original(self, record: Record, watched: Sequence[str]) -> Outputs:
        """What the full-precision model gives: the targets."""
        tuned = {name: bias.data for name, bias in self.biases.items()}
        set_state(self.layers, rounding="off", activations=False)
        try:
            self._use(self.first_biases)
            return self.outputs(record, watched)
        finally:
            self._use(tuned)
            set_state(self.layers, rounding="hard", activations=True)

    def outputs(self, record: Record, watched: Sequence[str]) -> Outputs:
        """What the quantized model gives, with gradients."""
        with _watch(self.layers, watched) as seen:
            prediction = self.denoise(record.sample, record.t, record.condition)
        return Outputs(prediction, seen)

    def losses(self, record: Record, target: Outputs, objective: Objective) -> Losses:
        """How far the quantized model is from the targets."""
        got = self.outputs(record, objective.layers)
        overall = F.mse_loss(got.prediction, target.prediction)
        local = torch.zeros_like(overall)
        for name in objective.layers:
            for output, wanted in zip(got.layers[name], target.layers[name], strict=True):
                local = local + F.mse_loss(output, wanted)
        return Losses(local, overall)

    def _use(self, values: Mapping[str, Tensor]) -> None:
        for name, bias in self.biases.items():
            bias.data = values[name]


@contextmanager
def _watch(layers: Mapping[str, SimulatedLayer], names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the block every run of the named layers leaves its output."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        seen[name].append(output)

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(layers[name].register_forward_hook(partial(keep, name)))
        yield seen


class Descent:
    """Adam on what one stage may change: weights with momentum throughout, scales anew at each timestep, as QuEST does.

    Args:
        weights: weights and biases; scales: of inputs, which stay positive.
        learning_rate, scale_learning_rate: of either kind.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        scales: Sequence[nn.Parameter],
        learning_rate: float,
        scale_learning_rate: float,
    ) -> None:
        self.weights, self.scales, self.scale_learning_rate = tuple(weights), tuple(scales), scale_learning_rate
        self._of_weights = torch.optim.Adam(weights, lr=learning_rate) if weights else None
        self._of_scales: torch.optim.Adam | None = None
        self.begin_timestep()

    def begin_timestep(self) -> None:
        """Forget the momentum of the scales: that of another timestep is of no use."""
        if self.scales:
            self._of_scales = torch.optim.Adam(self.scales, lr=self.scale_learning_rate)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside the block these parameters ask for gradients."""
        for parameter in (*self.weights, *self.scales):
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in (*self.weights, *self.scales):
                parameter.requires_grad_(False)
                parameter.grad = None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.weights, *self.scales):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of Adam; no scale loses more than all but a hundredth of itself."""
        least = [scale * _LEAST_SCALE for scale in self.scales]
        for adam in (self._of_weights, self._of_scales):
            if adam is not None:
                adam.step()
        for scale, bound in zip(self.scales, least, strict=True):
            scale.copy_(torch.maximum(scale, bound))

    def state(self) -> dict[str, Tensor]:
        """The momentum of the weights, by name."""
        if self._of_weights is None:
            return {}
        states = [self._of_weights.state[weight] for weight in self.weights]
        return {f"adam.{i}.{name}": value for i, state in enumerate(states) for name, value in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; other names in it are passed over."""
        for i, weight in enumerate(self.weights):
            prefix = f"adam.{i}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if own and self._of_weights is not None:
                self._of_weights.state[weight] = {
                    name: value if name == "step" else value.to(weight.device) for name, value in own.items()
                }


def take_step(
    student: Student, batches: Iterable[tuple[Record, Outputs]], objective: Objective, descent: Descent, rows: int
) -> float:
    """One step of Adam on the mean over `rows` inputs that come in small batches; the model's mean squared error.

    Raises RunError when that is not finite: no integers can be derived from such weights.
    """
    descent.zero_grad()
    overall = 0.0
    # PyTorch's flash attention is slow backwards on a CPU (docs/decisions.md), and needs more than tiny models save.
    with sdpa_kernel(SDPBackend.MATH):
        for record, target in batches:
            share = len(record.t) / rows
            losses = student.losses(record, target, objective)
            (losses.total(objective) * share).backward()  # type: ignore[no-untyped-call]
            overall += float(losses.overall.detach()) * share
    if not math.isfinite(overall):
        raise RunError("fine-tuning ends in values that are not finite", hint="lower its learning rates")
    descent.step()
    return overall
