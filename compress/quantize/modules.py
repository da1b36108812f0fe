"""Layers that hold packed weights and call one operator each, and layers of two such operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from compress.errors import UnsupportedLayer
from compress.formats import QTensor, code_shape, get_format, scale_shape
from compress.quantize.clock import Clock, install_clock
from compress.quantize.job import QuantizedPart
from compress.quantize.spec import LayerPart, LayerSpec

PACKED_NAMES = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_scale_factor",
    "input_scale",
    "input_zero_point",
    "input_smooth",
)
"""Buffer names of a packed layer; anything else in it is its bias.

In compressed-tensors' vocabulary, but for `weight_scale_factor`: that multiplies the scales, its `weight_global_scale`
divides them.
"""


class _Packed(nn.Module):
    """Buffers and operator arguments that linear and convolution share.

    Attributes:
        shape: of the weight; spec: its formats, without a split.
        channels: input channels, of all groups.
        clock: chooses among scales per timestep; the layers of a model share one, see `swap_layers`.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_scale_factor: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    input_smooth: Tensor | None
    weight_table: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], channels: int, has_bias: bool, spec: LayerSpec, device: str | torch.device
    ) -> None:
        super().__init__()
        self.shape, self.channels, self.spec = shape, channels, spec
        self._add_weight(device)
        self._add_input(device)
        # Follows from the format's name, so it is not stored; diffusers leaves such buffers off the meta device.
        self.register_buffer("weight_table", get_format(spec.weights.format).table(), persistent=False)
        self.bias = nn.Parameter(torch.empty(shape[0], device=device), requires_grad=False) if has_bias else None

    def _add_weight(self, device: str | torch.device) -> None:
        weights = self.spec.weights
        scales = scale_shape(self.shape, weights)
        codes = torch.empty(code_shape(self.shape, weights), dtype=torch.uint8, device=device)
        self.register_buffer("weight_packed", codes)
        self.register_buffer("weight_scale", torch.empty(scales, dtype=weights.torch_scale_dtype, device=device))
        zero_point = None if weights.symmetric else torch.empty(scales, dtype=torch.uint8, device=device)
        self.register_buffer("weight_zero_point", zero_point)
        global_scale = torch.empty(1, device=device) if weights.has_global_scale else None
        self.register_buffer("weight_scale_factor", global_scale)

    def _add_input(self, device: str | torch.device) -> None:
        activations = self.spec.activations
        static = activations is not None and activations.mode == "static"
        timesteps = () if activations is None else activations.timesteps
        count = max(1, len(timesteps))
        self.clock = Clock(timesteps) if timesteps else None
        asymmetric = activations is not None and not activations.symmetric
        self.register_buffer("input_scale", torch.empty(count, device=device) if static else None)
        self.register_buffer("input_zero_point", torch.empty(count, device=device) if static and asymmetric else None)
        self.register_buffer("input_smooth", torch.empty(self.channels, device=device) if self.spec.smooth else None)

    @property
    def weight(self) -> Tensor:
        """The weight the operator computes with in mode `exact`, float32; diffusers asks for `.weight.dtype`."""
        stored = (self.weight_packed, self.weight_scale, self.weight_zero_point)
        return QTensor(*stored, self.shape, self.spec.weights, self.weight_scale_factor).dequantize()

    def fill(self, weight: QTensor, bias: Tensor | None, act: Mapping[str, Tensor] | None = None) -> None:
        """Take codes, scales and bias of a quantized layer."""
        tensors = layer_tensors(weight, bias, act)
        self.load_state_dict(tensors, strict=True)

    def fill_parts(self, parts: Sequence[QuantizedPart], bias: Tensor | None) -> None:
        """Take the only part of a finished layer, and its bias."""
        (part,) = parts
        self.fill(part.weight, bias, part.inputs)

    def operator_arguments(self, x: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments that linear and convolution give the operator alike.

        Scales per timestep: those of the samples of x; without x, as plans and facts want it, the first one.
        """
        activations = self.spec.activations
        length = math.prod(self.shape[1:])
        return {
            "zero_points": self.weight_zero_point,
            "table": self.weight_table,
            "bias": self.bias,
            "act_scale": self._at_time(self.input_scale, x),
            "act_zero_point": self._at_time(self.input_zero_point, x),
            "smooth": self.input_smooth,
            "global_scale": self.weight_scale_factor,
            "bits": get_format(self.spec.weights.format).bits,
            "block_size": self.spec.weights.block_size(length),
            "act_format": "none" if activations is None else activations.operator_format,
            "mode": self.spec.mode,
        }

    def _at_time(self, values: Tensor | None, x: Tensor | None) -> Tensor | None:
        if values is None or self.clock is None:
            return values
        return values[:1] if x is None else self.clock.pick(values, x)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.spec.summary()}"


class QuantLinear(_Packed):
    """`nn.Linear` with packed weights `[out, in]`; input `[..., in]`, output `[..., out]` in the input's type."""

    def __init__(self, shape: tuple[int, ...], has_bias: bool, spec: LayerSpec, device: str | torch.device) -> None:
        super().__init__(shape, shape[1], has_bias, spec, device)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product with the weight; `residual`, of the output's shape and type, is added to it."""
        arguments = self.operator_arguments(x) | {"residual": residual}
        y: Tensor = torch.ops.compress.qmatmul(x, self.weight_packed, self.weight_scale, **arguments)
        return y


class QuantConv2d(_Packed):
    """`nn.Conv2d` (zero padding) with packed weights `[out, in / groups, kh, kw]`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        has_bias: bool,
        spec: LayerSpec,
        geometry: Mapping[str, Any],
        device: str | torch.device,
    ) -> None:
        super().__init__(shape, shape[1] * geometry["groups"], has_bias, spec, device)
        self.geometry = dict(geometry)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution; `residual`, of the output's shape and type, is added to it."""
        arguments = self.operator_arguments(x) | self.geometry | {"residual": residual}
        y: Tensor = torch.ops.compress.qconv2d(x, self.weight_packed, self.weight_scale, **arguments)
        return y


class SplitLayer(nn.Module):
    """A layer on a concatenation [backbone, skip], as two operators with scales of their own (Q-Diffusion, Li et al.
    2023, section 4.3); the bias belongs to `backbone`.

    Attributes:
        spec: formats of the layer, with its split; shape: of the whole weight.
    """

    def __init__(self, backbone: _Packed, skip: _Packed, spec: LayerSpec) -> None:
        super().__init__()
        self.backbone, self.skip, self.spec = backbone, skip, spec
        out, first, *rest = backbone.shape
        self.shape = (out, first + skip.shape[1], *rest)
        self.axis = 1 if isinstance(backbone, QuantConv2d) else -1

    def forward(self, x: Tensor) -> Tensor:
        """What the whole layer computes of x `[..., backbone + skip channels]`, or of such images."""
        first = self.backbone.channels
        y: Tensor = self.backbone(x.narrow(self.axis, 0, first))
        y = self.skip(x.narrow(self.axis, first, self.shape[1] - first), y)
        return y

    @property
    def weight(self) -> Tensor:
        """The whole weight that the operators compute with, float32; diffusers asks for `.weight.dtype`."""
        rows = [part.weight.flatten(1) for part in (self.backbone, self.skip)]
        return torch.cat(rows, 1).reshape(self.shape)

    def fill_parts(self, parts: Sequence[QuantizedPart], bias: Tensor | None) -> None:
        """Take the parts of a finished layer, backbone first, and its bias."""
        backbone, skip = parts
        self.backbone.fill(backbone.weight, bias, backbone.inputs)
        self.skip.fill(skip.weight, None, skip.inputs)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.spec.summary()}"


def layer_tensors(weight: QTensor, bias: Tensor | None, act: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The stored tensors of a quantized layer, or of a part of one, by their names within it."""
    tensors = {"weight_packed": weight.codes, "weight_scale": weight.scales}
    if weight.zero_points is not None:
        tensors["weight_zero_point"] = weight.zero_points
    if weight.global_scale is not None:
        tensors["weight_scale_factor"] = weight.global_scale
    if bias is not None:
        tensors["bias"] = bias
    return tensors | dict(act or {})


def packed_layer(
    layer: nn.Module, spec: LayerSpec, device: str | torch.device = "meta"
) -> QuantLinear | QuantConv2d | SplitLayer:
    """An unfilled packed twin of an `nn.Linear` or `nn.Conv2d`.

    Raises:
        UnsupportedLayer: another kind of layer, a convolution that is not zero-padded, or a split that is outside.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        kind = type(layer).__name__
        raise UnsupportedLayer(f"{kind} is neither a linear nor a 2-D convolution", hint="keep this layer")
    shape = tuple(layer.weight.shape)
    _check_channels(layer, shape, spec)
    plain = replace(spec, split=None)
    made = [
        _operator(layer, plain, part, layer.bias is not None and not part.start, device) for part in spec.parts(shape)
    ]
    return made[0] if len(made) == 1 else SplitLayer(made[0], made[1], spec)


def _operator(
    layer: nn.Linear | nn.Conv2d, spec: LayerSpec, part: LayerPart, has_bias: bool, device: str | torch.device
) -> QuantLinear | QuantConv2d:
    """The packed twin of one part of a layer."""
    out, _, *kernel = layer.weight.shape
    shape = (out, part.stop - part.start, *kernel)
    if isinstance(layer, nn.Linear):
        return QuantLinear(shape, has_bias, spec, device)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedLayer(f"padding {layer.padding!r}, mode {layer.padding_mode!r}", hint="keep this layer")
    geometry: dict[str, Any] = {
        "kernel": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": list(layer.padding),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
    }
    return QuantConv2d(shape, has_bias, spec, geometry, device)


def _check_channels(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], spec: LayerSpec) -> None:
    """Raises UnsupportedLayer for a split or smoothing that has no meaning for this layer."""
    if isinstance(layer, nn.Conv2d) and layer.groups != 1 and (spec.smooth or spec.split is not None):
        what = "smoothed" if spec.smooth else "split"
        raise UnsupportedLayer(f"a convolution in groups cannot be {what}", hint="leave it as it is, or keep it")
    if spec.split is not None and not 0 < spec.split < shape[1]:
        raise UnsupportedLayer(f"cannot be split at channel {spec.split} of {shape[1]}", hint="leave it whole")


def swap_layers(model: nn.Module, specs: Mapping[str, LayerSpec], device: str | torch.device = "meta") -> None:
    """Replace the named layers of `model` by unfilled packed ones, in place.

    Layers with scales per timestep share clocks, one for each choice of timesteps, which the model's forward sets.

    Raises:
        UnsupportedLayer: a name is not in the model, the layer is of another kind, or the model takes no timestep.
    """
    modules = dict(model.named_modules())
    clocks: dict[tuple[float, ...], Clock] = {}
    for name, spec in specs.items():
        if name not in modules:
            raise UnsupportedLayer("the model has no such layer", where=name, hint="does the config fit the weights?")
        try:
            twin = packed_layer(modules[name], spec, device)
        except UnsupportedLayer as error:
            raise UnsupportedLayer(error.message, where=name, hint=error.hint) from None
        _share_clock(twin, clocks)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, twin)
    for clock in clocks.values():
        install_clock(model, clock)


def _share_clock(layer: nn.Module, clocks: dict[tuple[float, ...], Clock]) -> None:
    """Give the operators of a layer the clock of their timesteps; its own one becomes it where there is none."""
    for module in layer.modules():
        if isinstance(module, _Packed) and module.clock is not None:
            module.clock = clocks.setdefault(module.clock.timesteps, module.clock)
