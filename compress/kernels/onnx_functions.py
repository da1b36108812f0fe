"""Model-local ONNX functions that compute the operators with standard ONNX: one overload per configuration.

An exported file holds, for each operator node, a function of the same name and overload; runtimes without our kernels
run the function. Two routes: *float* (decode the weight, round the activations and back, multiply in float32), and
*integer* where one weight scale covers a whole output channel and activations are integers (multiply the codes exactly,
scale afterwards). `tests/kernels/test_onnx_functions.py` holds both against the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.errors import ExportError
from compress.kernels.onnx_activations import MIDDLE, ByteCodes, byte_codes, rounded
from compress.kernels.onnx_graph import Body
from compress.kernels.onnx_variants import Variant
from compress.kernels.onnx_vq import VqForm, vq_bytes, vq_scales, vq_weight
from compress.kernels.onnx_weights import (
    Order,
    WeightForm,
    channel_vector,
    float_weight,
    integer_weight,
    scale_values,
)
from compress.kernels.schema import DOMAIN

OPSETS = (21, 25)
"""First and last opset the functions are written for (21 brought QuantizeLinear in blocks)."""

# u8 x s8 sums pairs in saturating int16 on x86 without VNNI: 2 * 255 * 63 still fits, so up to 6 bits are safe.
_SIGNED_BITS = 6


def function_for(
    variant: Variant, opset: int, builder: Callable[[Body, Variant], FunctionBuilder] | None = None
) -> Any:
    """The `onnx.FunctionProto` of a variant: the operator's name, the variant's overload, standard operators only.

    `builder` writes the body, `FunctionBuilder` when None.

    Raises:
        ExportError: the opset is not one the functions are written for, or an activation format has no ONNX form.
    """
    import onnx

    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset {opset} is not supported", hint=f"use {OPSETS[0]} to {OPSETS[1]}")
    body = Body()
    y = (builder or FunctionBuilder)(body, variant).output()
    assert body.nodes[-1].output[0] == y
    body.nodes[-1].output[0] = "y"
    names = [tensor.name for tensor in variant.operator.inputs]
    last = max(names.index(name) for name in variant.inputs)
    return onnx.helper.make_function(
        DOMAIN,
        variant.operator.onnx_name,
        names[: last + 1],
        ["y"],
        body.nodes,
        [onnx.helper.make_opsetid("", opset)],
        attributes=[a.name for a in variant.operator.attributes],
        overload=variant.overload,
    )


class FunctionBuilder:
    """Writes the body of one variant; what may be replaced is the product with the weight."""

    def __init__(self, body: Body, variant: Variant) -> None:
        self.body, self.variant = body, variant

    def output(self) -> str:
        body, variant = self.body, self.variant
        x = self._float("x")
        if "smooth" in variant.inputs:
            x = body.op("Mul", x, self._per_channel("smooth"))
        y = self._product(x)
        if "low_rank_a" in variant.inputs:
            y = body.op("Add", y, self._low_rank(x))
        y = self._activated(y)
        if "residual" in variant.inputs:
            y = body.op("Add", y, self._float("residual"))
        return body.cast(y, "FLOAT16") if "x" in variant.halves else y

    def _activated(self, y: str) -> str:
        if self.variant.activation == "gelu_tanh":
            return self.body.op("Gelu", y, approximate="tanh")
        if self.variant.activation == "silu":
            return self.body.op("Mul", y, self.body.op("Sigmoid", y))
        return y

    def _product(self, x: str) -> str:
        """Product and bias of the smoothed float32 value `x`."""
        return self._integer_product(x) if self.variant.integer_route else self._float_product(x)

    def _float_product(self, x: str) -> str:
        body, variant = self.body, self.variant
        act = variant.act
        if act:
            x = self._by_image(x, lambda rows: rounded(body, act, rows))
        if variant.geometry is None:
            y = body.op("MatMul", x, self._decoded("kn"))
            return body.op("Add", y, self._float("bias")) if "bias" in variant.inputs else y
        weight = self._image_weight(self._decoded("nk"))
        bias = [self._float("bias")] if "bias" in variant.inputs else []
        return body.op("Conv", x, weight, *bias, **variant.geometry.attributes())

    def _decoded(self, order: Order) -> str:
        """The decoded float32 weight."""
        form = self.variant.weight
        if isinstance(form, VqForm):
            return vq_weight(self.body, form, order)
        return float_weight(self.body, form, order)

    def _integer_product(self, x: str) -> str:
        """Product of codes, exact in int32, then both scales and the bias."""
        body, variant = self.body, self.variant
        act = self._codes(x)
        assert variant.act is not None
        if variant.geometry is None:
            weight, zero = self._weight_codes("kn")
            y = body.op("MatMulInteger", act.codes, weight, act.zero_point, zero)
        else:
            weight, zero = self._weight_codes("nk")
            inputs = (act.codes, self._image_weight(weight), act.zero_point, zero)
            y = body.op("ConvInteger", *inputs, **variant.geometry.attributes())
        scale = self._weight_scale()
        y = body.cast(y, "FLOAT")
        if variant.act.scale == "scalar":
            # onnxruntime fuses this, and only this, with the integer product. It takes the first scale for a single
            # number without looking, so scales of rows must not come this way.
            y = body.op("Mul", y, body.op("Mul", act.scale, scale))
        else:
            y = body.op("Mul", body.op("Mul", y, act.scale), scale)
        return body.op("Add", y, self._per_channel("bias")) if "bias" in variant.inputs else y

    def _weight_codes(self, order: Order) -> tuple[str, str]:
        """The weight in whole numbers, and its zero point."""
        w = self.variant.weight
        if isinstance(w, VqForm):
            return vq_bytes(self.body, w, order), self.body.scalar(MIDDLE, "uint8")
        codes = integer_weight(self.body, w, order)
        if order == "nk" or w.bits > _SIGNED_BITS:
            return codes, self._weight_zero("uint8")
        return self.body.cast(codes, "INT8"), self._weight_zero("int8")

    def _weight_scale(self) -> str:
        """The weight's scale, broadcasting against the product."""
        body, w = self.body, self.variant.weight
        if isinstance(w, VqForm):
            scale, per_channel = body.op("Reshape", vq_scales(body, w), body.ints(-1)), True
        else:
            scale = channel_vector(body, scale_values(body, w, guard=False), w.scales)
            per_channel = w.scales == "channel"
        return body.op("Unsqueeze", scale, body.ints(1, 2)) if self.variant.geometry and per_channel else scale

    def _codes(self, x: str) -> ByteCodes:
        """Activation codes in x's shape, with a scale that broadcasts against the product."""
        body, act = self.body, self.variant.act
        assert act is not None
        if self.variant.geometry is None or act.scale == "scalar":
            return byte_codes(body, act, x)
        codes = byte_codes(body, act, body.op("Flatten", x, axis=1))
        shaped = body.op("Reshape", codes.codes, body.op("Shape", x))
        return codes._replace(codes=shaped, scale=body.op("Unsqueeze", codes.scale, body.ints(2, 3)))

    def _by_image(self, x: str, function: Callable[[str], str]) -> str:
        """`function` over rows; a convolution with dynamic scales sees each image as one row."""
        act = self.variant.act
        if self.variant.geometry is None or act is None or act.scale != "dynamic":
            return function(x)
        return self.body.op("Reshape", function(self.body.op("Flatten", x, axis=1)), self.body.op("Shape", x))

    def _weight_zero(self, dtype: str) -> str:
        w = self.variant.weight
        assert isinstance(w, WeightForm)
        if w.zeros is None:
            return self.body.scalar(1 << w.bits - 1, dtype)
        zero = channel_vector(self.body, "zero_points", w.zeros)
        return zero if dtype == "uint8" else self.body.cast(zero, "INT8")

    def _image_weight(self, weight: str) -> str:
        geometry = self.variant.geometry
        assert geometry is not None
        return self.body.op("Reshape", weight, self.body.ints(0, -1, *geometry.kernel))

    def _low_rank(self, x: str) -> str:
        """x @ a @ b; for a convolution, a convolution with a's columns and one of 1x1 with b's."""
        body, geometry = self.body, self.variant.geometry
        a, b = self._float("low_rank_a"), self._float("low_rank_b")
        if geometry is None:
            return body.op("MatMul", body.op("MatMul", x, a), b)
        first = self._image_weight(body.op("Transpose", a, perm=[1, 0]))
        second = body.op("Unsqueeze", body.op("Transpose", b, perm=[1, 0]), body.ints(2, 3))
        return body.op("Conv", body.op("Conv", x, first, **geometry.attributes()), second)

    def _per_channel(self, name: str) -> str:
        """A vector that broadcasts along the channels of a row or an image."""
        value = self._float(name)
        return self.body.op("Unsqueeze", value, self.body.ints(1, 2)) if self.variant.geometry else value

    def _float(self, name: str) -> str:
        return self.body.cast(name, "FLOAT") if name in self.variant.halves else name
