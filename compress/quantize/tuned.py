"""Parts of simulated layers whose weights go on learning after their rounding was decided, and their state on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.errors import RunError
from compress.files import write_atomically
from compress.quantize.simulate import Rounding, SimulatedLayer, SimulatedPart


class TunedPart(SimulatedPart):
    """A part whose weight goes on learning after its rounding was decided.

    The stored integer is `clamp(floor(w' / scale) + up + zero)`: `tuned` is w' `[n, k]`, the full-precision weight at
    first; `up` is 1 where rounding went up, 0 where it went down, and stays. So w' may cross into the next level, and
    with w' untouched the codes are those the part came with.
    """

    def __init__(self, layer: SimulatedLayer, part: SimulatedPart) -> None:
        super().__init__(layer.layer, layer.spec, part.part, None if part.inputs is None else part.inputs.clock)
        self.inputs, self.smooth, self.scales = part.inputs, part.smooth, part.scales
        rows = part.rows.clone()
        _, _, zero = self._limits()
        # A code at the end of its range hides how it was rounded; there either answer gives the same code.
        self.up = (part.codes().float() - self._expanded(zero) - self._ratio(rows).floor()).clamp(0, 1)
        self.tuned = nn.Parameter(rows, requires_grad=False)

    def codes(self) -> Tensor:
        """Stored codes, uint8 `[n, k]`, derived from the weight as it is now."""
        return self._whole(self.tuned.detach()).to(torch.uint8)

    def effective_weight(self, rounding: Rounding) -> Tensor:
        """The weight `[n, ...]` that the part multiplies with; hard, its gradient reaches `tuned`."""
        if rounding != "hard":
            return super().effective_weight(rounding)
        _, _, zero = self._limits()
        return ((self._whole(self.tuned) - self._expanded(zero)) * self._steps()).reshape(self.weight.shape)

    def _whole(self, rows: Tensor) -> Tensor:
        low, high, zero = self._limits()
        return (floor_through(self._ratio(rows)) + self.up + self._expanded(zero)).clamp(low, high)


def tune_parts(layers: Iterable[SimulatedLayer]) -> None:
    """Replace the parts of these layers by ones whose weights can go on learning."""
    for layer in layers:
        layer.parts = nn.ModuleList(TunedPart(layer, part) for part in layer.operators())


def floor_through(x: Tensor) -> Tensor:
    """x rounded down to whole numbers; the gradient is that of x."""
    floored: Tensor = _FloorThrough.apply(x)  # type: ignore[no-untyped-call]
    return floored


class _FloorThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def biases_of(layers: Mapping[str, SimulatedLayer]) -> dict[str, nn.Parameter]:
    """The biases of the layers that have one, by layer name; these are the live parameters."""
    found = {name: layer.layer.bias for name, layer in layers.items()}
    return {name: bias for name, bias in found.items() if isinstance(bias, nn.Parameter)}


def tuned_state(layers: Mapping[str, SimulatedLayer]) -> dict[str, Tensor]:
    """Every tensor that fine-tuning may have changed, by name; views of the live ones."""
    state = {f"{name}.bias": bias.data for name, bias in biases_of(layers).items()}
    for name, layer in layers.items():
        for part in layer.operators():
            if part.inputs is not None and part.inputs.scale is not None:
                state[f"{part.part.of(name)}.input_scale"] = part.inputs.scale.data
            if isinstance(part, TunedPart):
                state[f"{part.part.of(name)}.weight"] = part.tuned.data
    return state


def save_progress(path: Path, layers: Mapping[str, SimulatedLayer], momentum: Mapping[str, Tensor], done: int) -> None:
    """Write what is learned after `done` pieces of work, and the momentum, atomically. Raises OutputError."""
    live = tuned_state(layers) | dict(momentum)
    state = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in live.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(state, partial, metadata={"done": str(done)}))


class Progress(NamedTuple):
    """How many pieces of work were done, and what was stored beside the model: the momentum."""

    done: int
    momentum: dict[str, Tensor]


def load_progress(path: Path, layers: Mapping[str, SimulatedLayer]) -> Progress:
    """Take what `save_progress` wrote; without a file nothing was done.

    Raises:
        RunError: the file is damaged, or of another model.
    """
    if not path.is_file():
        return Progress(0, {})
    try:
        with safe_open(path, "pt") as file:
            done = int((file.metadata() or {})["done"])
        stored = load_file(path)
        for name, tensor in tuned_state(layers).items():
            tensor.copy_(stored.pop(name))
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"unusable progress: {error}", where=str(path), hint="delete it; the stage starts anew"
        ) from error
    return Progress(done, stored)
