"""Trainable twins of the layers that will be packed: the same arithmetic in floating point, with gradients.

A twin holds the original layer and can compute as it (everything off), with its weight rounded to the grid (to nearest,
softly by AdaRound's h(V), or hard), and with its input rounded. What it computes hard with rounded inputs is what the
packed layer computes, up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import FormatError, UnsupportedLayer
from compress.formats import Scales, dynamic_scale, get_format, pack_weight
from compress.formats.layout import from_blocks
from compress.formats.qtensor import stored_scales
from compress.quantize.clock import Clock
from compress.quantize.job import QuantizedLayer, QuantizedPart
from compress.quantize.observers import StaticScale
from compress.quantize.rounding.adaround import hard_rounding, initial_offset, rectified_sigmoid
from compress.quantize.rules import Assignment
from compress.quantize.spec import ActivationSpec, LayerPart, LayerSpec

Rounding = Literal["off", "nearest", "soft", "hard"]


class InputQuantizer(nn.Module):
    """Rounds a part's input to its format and back; gradients pass the rounding straight through.

    Static: `scale` (and `zero`) of shape `[1]`, or `[T]` for as many timesteps, picked by the clock. Only `scale` has
    gradients (Q-Diffusion learns the step and keeps the zero point). Dynamic: both are None.
    """

    zero: Tensor | None

    def __init__(self, spec: ActivationSpec, clock: Clock | None, *, images: bool) -> None:
        super().__init__()
        if get_format(spec.format).kind != "int":
            raise FormatError(f"{spec.format} activations cannot be simulated", hint="use int8 or int4")
        if spec.timesteps and clock is None:
            raise FormatError("scales per timestep need a clock")
        self.spec, self.clock, self.images = spec, clock, images
        static, count = spec.mode == "static", max(1, len(spec.timesteps))
        self.scale = nn.Parameter(torch.ones(count)) if static else None
        self.register_buffer("zero", torch.zeros(count) if static and not spec.symmetric else None)

    def set(self, found: StaticScale) -> None:
        """Take a measured scale, and its zero point. Raises FormatError for other shapes, or scales <= 0."""
        assert self.scale is not None
        given = found.scale.reshape(-1)
        if (
            given.shape != self.scale.shape
            or not bool((given > 0).all())
            or (found.zero_point is None) != (self.zero is None)
        ):
            raise FormatError(f"a scale {list(given.shape)} with{'out' * (found.zero_point is None)} zero point")
        self.scale.data.copy_(given)
        if self.zero is not None and found.zero_point is not None:
            self.zero.copy_(found.zero_point.reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        """x rounded, float32 of its shape."""
        fmt = get_format(self.spec.operator_format)
        low, high = fmt.code_range
        x = x.float()
        if self.scale is None:
            scale = dynamic_scale(x.detach(), fmt, tuple(range(1, x.dim())) if self.images else (-1,))
            return round_through(x / scale).clamp(low, high) * scale
        scale, zero = self._picked(self.scale, x), None if self.zero is None else self._picked(self.zero, x)
        codes = round_through(x / scale)
        if zero is None:
            return codes.clamp(low, high) * scale
        return ((codes + zero).clamp(low, high) - zero) * scale

    def stored(self) -> dict[str, Tensor]:
        """The tensors a packed layer stores, by name."""
        if self.scale is None:
            return {}
        tensors = {"input_scale": self.scale.detach().clone()}
        return tensors if self.zero is None else tensors | {"input_zero_point": self.zero.clone()}

    def _picked(self, values: Tensor, x: Tensor) -> Tensor:
        if not self.spec.timesteps:
            return values
        assert self.clock is not None
        return self.clock.pick(values, x)


class SimulatedPart(nn.Module):
    """One operator of a layer: a slice of its weight on an integer grid, and its input's quantizer.

    Attributes:
        smooth: factors `[channels]` that multiply the input before it is rounded; the weight is divided by them.
        scales: the grid, as it will be stored; None until `set_grid`.
        offset: AdaRound's V `[n, k]`, from `start_rounding` until `finish_rounding`.
    """

    smooth: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, spec: LayerSpec, part: LayerPart, clock: Clock | None) -> None:
        super().__init__()
        fmt = spec.weights.number_format
        if fmt.kind != "int":
            raise FormatError(f"{fmt.name} weights have no integer grid to learn", hint="use int8, int4, int3 or int2")
        self.part, self.spec, self.images = part, spec, isinstance(layer, nn.Conv2d)
        self.source = [layer]  # in a list: the layer is the twin's child, not this part's
        self.inputs = None
        if spec.activations is not None:
            self.inputs = InputQuantizer(spec.activations, clock, images=self.images)
        channels = part.stop - part.start
        self.register_buffer("smooth", torch.ones(channels) if spec.smooth else None)
        self.scales: Scales | None = None
        self.offset: nn.Parameter | None = None
        self._down: Tensor | None = None  # floor(w / scale), while V is learned
        self._codes: Tensor | None = None  # uint8 [n, k], once rounding is decided

    @property
    def weight(self) -> Tensor:
        """The full-precision weight of the part, `[n, ...]`, with the smoothing divided out."""
        weight = self.source[0].weight[:, self.part.start : self.part.stop].detach()
        if self.smooth is None:
            return weight
        return weight / self.smooth.reshape(1, -1, *(1 for _ in weight.shape[2:]))

    @property
    def rows(self) -> Tensor:
        """The same as `[n, k]`, float32."""
        return self.weight.flatten(1).float()

    def set_grid(self, scales: Scales) -> None:
        """Take scales and zero points; earlier rounding decisions are dropped. Raises FormatError for bad ones."""
        shape = tuple(self.weight.shape)
        self.scales = stored_scales(scales.scales, scales.zero_points, shape, self.spec.weights)
        self.offset = self._down = self._codes = None

    def start_rounding(self) -> None:
        """Begin to learn: V such that h(V) is the fraction that floor leaves."""
        ratio = self._ratio(self.rows)
        self._down = ratio.floor()
        self._codes = None
        self.offset = nn.Parameter(initial_offset(ratio - self._down))

    def finish_rounding(self, codes: Tensor | None = None) -> None:
        """Keep the hard decisions (or the given codes, uint8 `[n, k]`) and let go of V."""
        self._codes = self.codes() if codes is None else codes
        self.offset = self._down = None

    def codes(self) -> Tensor:
        """Stored codes, uint8 `[n, k]`: decided ones, V's hard ones, or the nearest (half to even, as stored)."""
        if self._codes is not None:
            return self._codes
        low, high, zero = self._limits()
        if self.offset is not None and self._down is not None:
            whole = self._down + hard_rounding(self.offset.detach())
        else:
            whole = self._ratio(self.rows).round()
        return (whole + self._expanded(zero)).clamp(low, high).to(torch.uint8)

    def effective_weight(self, rounding: Rounding) -> Tensor:
        """The weight `[n, ...]` that the part multiplies with."""
        if rounding == "off":
            return self.weight
        low, high, zero = self._limits()
        zeros = self._expanded(zero)
        if rounding == "soft" and self.offset is not None and self._down is not None:
            whole = (self._down + rectified_sigmoid(self.offset) + zeros).clamp(low, high)
        elif rounding == "nearest":
            whole = (self._ratio(self.rows).round() + zeros).clamp(low, high)
        else:
            whole = self.codes().float()
        return ((whole - zeros) * self._steps()).reshape(self.weight.shape)

    def quantized(self) -> QuantizedPart:
        """The part as it is stored."""
        assert self.scales is not None
        inputs = {} if self.inputs is None else self.inputs.stored()
        if self.smooth is not None:
            inputs["input_smooth"] = self.smooth.clone()
        packed = pack_weight(self.codes(), self.scales, tuple(self.weight.shape), self.spec.weights)
        return QuantizedPart(packed, inputs)

    def _ratio(self, rows: Tensor) -> Tensor:
        """w / scale `[n, k]`."""
        return rows / self._steps()

    def _steps(self) -> Tensor:
        """The scale of every weight, broadcasting against `[n, k]`."""
        assert self.scales is not None, "set_grid comes first"
        return self._expanded(self.scales.values())

    def _limits(self) -> tuple[int, int, Tensor | float]:
        assert self.scales is not None, "set_grid comes first"
        bits = self.spec.weights.number_format.bits
        zeros = self.scales.zero_points
        return 0, (1 << bits) - 1, float(1 << bits - 1) if zeros is None else zeros.float()

    def _expanded(self, values: Tensor | float) -> Tensor:
        """One value of each block for every position of it."""
        found = torch.as_tensor(values)
        if found.dim() < 2 or found.shape[1] == 1:
            return found
        k = self.weight.flatten(1).shape[1]
        block = self.spec.weights.block_size(k)
        return from_blocks(found[..., None].expand(*found.shape, block), k)

    def forward(self, x: Tensor, rounding: Rounding, activations: bool, bias: Tensor | None) -> Tensor:
        """The part's output for its channels of the input."""
        x = x.float()
        if self.smooth is not None:
            x = x * self.smooth.reshape((-1, 1, 1) if self.images else (-1,))
        if activations and self.inputs is not None:
            x = self.inputs(x)
        layer, weight = self.source[0], self.effective_weight(rounding)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight, bias)


class SimulatedLayer(nn.Module):
    """Stands in for a linear or convolution; with everything off it is that layer, bit for bit.

    Attributes:
        rounding: how the weight is rounded; activations: whether the input is.
    """

    def __init__(self, name: str, layer: nn.Linear | nn.Conv2d, spec: LayerSpec, clock: Clock | None = None) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise UnsupportedLayer(f"padding {layer.padding!r}, mode {layer.padding_mode!r}", hint="keep this layer")
        self.name, self.layer, self.spec = name, layer, spec
        parts = spec.parts(tuple(layer.weight.shape))
        self.parts = nn.ModuleList(SimulatedPart(layer, spec, part, clock) for part in parts)
        self.rounding: Rounding = "off"
        self.activations = False

    @property
    def weight(self) -> Tensor:
        """The original weight; diffusers asks layers for `.weight.dtype`."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.rounding == "off" and not self.activations:
            y: Tensor = self.layer(x)
            return y
        axis = 1 if isinstance(self.layer, nn.Conv2d) else -1
        bias = self.layer.bias
        total: Tensor | None = None
        for part in self.operators():
            taken = x if len(self.parts) == 1 else x.narrow(axis, part.part.start, part.part.stop - part.part.start)
            y = part(taken, self.rounding, self.activations, bias if total is None else None)
            total = y if total is None else total + y
        assert total is not None
        return total.to(x.dtype)

    def operators(self) -> list[SimulatedPart]:
        """The parts, typed."""
        return [part for part in self.parts if isinstance(part, SimulatedPart)]

    def quantized(self) -> QuantizedLayer:
        """The layer as it is stored."""
        return QuantizedLayer(self.name, tuple(part.quantized() for part in self.operators()))


def simulate(
    model: nn.Module, assignments: Sequence[Assignment], clock: Clock | None = None
) -> dict[str, SimulatedLayer]:
    """Put twins in the place of the assigned layers of `model`; they are returned by name, all off.

    Parameters of the model stop asking for gradients.

    Raises:
        UnsupportedLayer, FormatError: a layer or format has no twin; names the layer.
    """
    model.requires_grad_(False)
    twins: dict[str, SimulatedLayer] = {}
    for assignment in assignments:
        name, spec = assignment.info.name, assignment.spec
        assert spec is not None
        layer = model.get_submodule(name)
        try:
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise UnsupportedLayer(f"{type(layer).__name__} is neither a linear nor a 2-D convolution")
            twins[name] = SimulatedLayer(name, layer, spec, clock)
        except (FormatError, UnsupportedLayer) as error:
            raise type(error)(error.message, where=name, hint=error.hint) from None
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, twins[name])
    return twins


def set_state(
    layers: Mapping[str, SimulatedLayer] | Iterable[SimulatedLayer],
    *,
    rounding: Rounding | None = None,
    activations: bool | None = None,
) -> None:
    """Switch rounding, activations or both of many layers."""
    for layer in layers.values() if isinstance(layers, Mapping) else layers:
        layer.rounding = layer.rounding if rounding is None else rounding
        layer.activations = layer.activations if activations is None else activations


def round_through(x: Tensor) -> Tensor:
    """x rounded to whole numbers, half to even; the gradient is that of x."""
    rounded: Tensor = _RoundThrough.apply(x)  # type: ignore[no-untyped-call]
    return rounded


class _RoundThrough(torch.autograd.Function):
    """Straight-through rounding: x + (round(x) - x).detach() would not be whole to the last bit."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient
