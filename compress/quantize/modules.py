"""Layers that hold packed weights and call one operator each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from compress.errors import UnsupportedLayer
from compress.formats import QTensor, code_shape, get_format, scale_shape
from compress.quantize.spec import LayerSpec

PACKED_NAMES = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_scale_factor",
    "input_scale",
    "input_zero_point",
)
"""Buffer names of a packed layer; anything else in it is its bias.

In compressed-tensors' vocabulary, but for `weight_scale_factor`: that multiplies the scales, its `weight_global_scale`
divides them.
"""


class _Packed(nn.Module):
    """Buffers and operator arguments that linear and convolution share."""

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_scale_factor: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    weight_table: Tensor | None

    def __init__(self, shape: tuple[int, ...], has_bias: bool, spec: LayerSpec, device: str | torch.device) -> None:
        super().__init__()
        self.shape, self.spec = shape, spec
        scales = scale_shape(shape, spec.weights)
        static = spec.activations is not None and spec.activations.mode == "static"
        asymmetric = spec.activations is not None and not spec.activations.symmetric
        scale_dtype = spec.weights.torch_scale_dtype
        self.register_buffer(
            "weight_packed", torch.empty(code_shape(shape, spec.weights), dtype=torch.uint8, device=device)
        )
        self.register_buffer("weight_scale", torch.empty(scales, dtype=scale_dtype, device=device))
        zero_point = None if spec.weights.symmetric else torch.empty(scales, dtype=torch.uint8, device=device)
        self.register_buffer("weight_zero_point", zero_point)
        global_scale = torch.empty(1, device=device) if spec.weights.has_global_scale else None
        self.register_buffer("weight_scale_factor", global_scale)
        self.register_buffer("input_scale", torch.empty(1, device=device) if static else None)
        self.register_buffer("input_zero_point", torch.empty(1, device=device) if static and asymmetric else None)
        # Follows from the format's name, so it is not stored; diffusers leaves such buffers off the meta device.
        self.register_buffer("weight_table", get_format(spec.weights.format).table(), persistent=False)
        self.bias = nn.Parameter(torch.empty(shape[0], device=device), requires_grad=False) if has_bias else None

    @property
    def weight(self) -> Tensor:
        """The weight the operator computes with in mode `exact`, float32; diffusers asks for `.weight.dtype`."""
        stored = (self.weight_packed, self.weight_scale, self.weight_zero_point)
        return QTensor(*stored, self.shape, self.spec.weights, self.weight_scale_factor).dequantize()

    def fill(self, weight: QTensor, bias: Tensor | None, act: dict[str, Tensor] | None = None) -> None:
        """Take codes, scales and bias of a quantized layer."""
        tensors = layer_tensors(weight, bias, act)
        self.load_state_dict(tensors, strict=True)

    def operator_arguments(self) -> dict[str, Any]:
        """Keyword arguments that linear and convolution give the operator alike."""
        activations = self.spec.activations
        length = math.prod(self.shape[1:])
        return {
            "zero_points": self.weight_zero_point,
            "table": self.weight_table,
            "bias": self.bias,
            "act_scale": self.input_scale,
            "act_zero_point": self.input_zero_point,
            "global_scale": self.weight_scale_factor,
            "bits": get_format(self.spec.weights.format).bits,
            "block_size": self.spec.weights.block_size(length),
            "act_format": "none" if activations is None else activations.operator_format,
            "mode": self.spec.mode,
        }

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.spec.summary()}"


class QuantLinear(_Packed):
    """`nn.Linear` with packed weights `[out, in]`; input `[..., in]`, output `[..., out]` in the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.compress.qmatmul(x, self.weight_packed, self.weight_scale, **self.operator_arguments())
        return y


class QuantConv2d(_Packed):
    """`nn.Conv2d` (zero padding) with packed weights `[out, in / groups, kh, kw]`."""

    def __init__(self, layer: nn.Conv2d, spec: LayerSpec, device: str | torch.device) -> None:
        super().__init__(tuple(layer.weight.shape), layer.bias is not None, spec, device)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UnsupportedLayer(f"padding {layer.padding!r}, mode {layer.padding_mode!r}", hint="keep this layer")
        self.geometry: dict[str, Any] = {
            "kernel": list(layer.kernel_size),
            "stride": list(layer.stride),
            "padding": list(layer.padding),
            "dilation": list(layer.dilation),
            "groups": layer.groups,
        }

    def forward(self, x: Tensor) -> Tensor:
        arguments = self.operator_arguments() | self.geometry
        y: Tensor = torch.ops.compress.qconv2d(x, self.weight_packed, self.weight_scale, **arguments)
        return y


def layer_tensors(weight: QTensor, bias: Tensor | None, act: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The stored tensors of a quantized layer, by their names within the layer."""
    tensors = {"weight_packed": weight.codes, "weight_scale": weight.scales}
    if weight.zero_points is not None:
        tensors["weight_zero_point"] = weight.zero_points
    if weight.global_scale is not None:
        tensors["weight_scale_factor"] = weight.global_scale
    if bias is not None:
        tensors["bias"] = bias
    return tensors | (act or {})


def packed_layer(layer: nn.Module, spec: LayerSpec, device: str | torch.device = "meta") -> _Packed:
    """An unfilled packed twin of an `nn.Linear` or `nn.Conv2d`.

    Raises:
        UnsupportedLayer: another kind of layer, or a convolution that is not zero-padded.
    """
    if isinstance(layer, nn.Linear):
        shape = tuple(layer.weight.shape)
        return QuantLinear(shape, layer.bias is not None, spec, device)
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d(layer, spec, device)
    raise UnsupportedLayer(f"{type(layer).__name__} is neither a linear nor a 2-D convolution", hint="keep this layer")


def swap_layers(model: nn.Module, specs: dict[str, LayerSpec], device: str | torch.device = "meta") -> None:
    """Replace the named layers of `model` by unfilled packed ones, in place.

    Raises:
        UnsupportedLayer: a name is not in the model, or the layer is of another kind.
    """
    modules = dict(model.named_modules())
    for name, spec in specs.items():
        if name not in modules:
            raise UnsupportedLayer("the model has no such layer", where=name, hint="does the config fit the weights?")
        try:
            twin = packed_layer(modules[name], spec, device)
        except UnsupportedLayer as error:
            raise UnsupportedLayer(error.message, where=name, hint=error.hint) from None
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, twin)
