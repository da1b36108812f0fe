"""Bodies of low-bit layers with operators of a stock onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from compress.kernels.onnx_activations import MIDDLE, rounded
from compress.kernels.onnx_functions import FunctionBuilder
from compress.kernels.onnx_graph import Body
from compress.kernels.onnx_variants import Variant

MICROSOFT: Final = "com.microsoft"
FLOAT32, INT8 = 1, 4
"""`accuracy_level` of MatMulNBits: its default lets onnxruntime choose."""


class StockBuilder(FunctionBuilder):
    """A body whose product takes the inputs of a `StockForm`."""

    def __init__(self, body: Body, variant: Variant, settings: Mapping[str, Any]) -> None:
        super().__init__(body, variant)
        self.settings = settings  # also the shape of zero points to spell out, under "zeros"

    def _rounded(self, x: str) -> str:
        act = self.variant.act
        return self._by_image(x, lambda rows: rounded(self.body, act, rows)) if act else x

    def _weight_zeros(self) -> list[str]:
        """Zero points of an integer weight, as a further input.

        int8 ones are spelled out: with `session.x64quantprecision` onnxruntime adds one of the wrong shape otherwise.
        """
        if "zero_points" in self.variant.inputs:
            return ["zero_points"]
        shape = self.settings["zeros"]
        return [] if shape is None else [self.body.constant(np.zeros(shape, np.int8))]

    def _biased(self, y: str) -> str:
        return self.body.op("Add", y, self._per_channel("bias")) if "bias" in self.variant.inputs else y


class NBitsBuilder(StockBuilder):
    """com.microsoft.MatMulNBits; activations are rounded before unless the operator itself rounds them."""

    def _product(self, x: str) -> str:
        rows = self._rounded(x) if self.settings["accuracy_level"] == FLOAT32 else x
        zeros = ["zero_points"] if "zero_points" in self.variant.inputs else []
        y = self.body.op("MatMulNBits", rows, "codes", "scales", *zeros, domain=MICROSOFT, **self.settings)
        return self._biased(y)


class Bnb4Builder(StockBuilder):
    """com.microsoft.MatMulBnb4, which knows NF4; always in float32."""

    def _product(self, x: str) -> str:
        rows = self._rounded(x)
        return self._biased(self.body.op("MatMulBnb4", rows, "codes", "scales", domain=MICROSOFT, **self.settings))


class IntegerBuilder(StockBuilder):
    """MatMulInteger of byte codes with an int8 weight `[k, n]`; scales follow."""

    def _product(self, x: str) -> str:
        body, act = self.body, self._codes(x)
        y = body.cast(body.op("MatMulInteger", act.codes, "codes", act.zero_point, *self._weight_zeros()), "FLOAT")
        if self.variant.act and self.variant.act.scale == "scalar":
            y = body.op("Mul", y, body.op("Mul", act.scale, "scales"))
        else:  # onnxruntime would fuse a product of both scales, and take the first row's for all
            y = body.op("Mul", body.op("Mul", y, act.scale), "scales")
        return self._biased(y)


class QdqMatMulBuilder(StockBuilder):
    """QuantizeLinear and DequantizeLinear around MatMul, which onnxruntime fuses into one integer product."""

    def _product(self, x: str) -> str:
        body, rank = self.body, self.settings["rank"]
        if rank == 2:  # onnxruntime turns MatMul and Add of two axes into Gemm, and does not see the pattern then
            x = body.op("Unsqueeze", x, body.ints(0))
        has_zero = "act_zero_point" in self.variant.inputs
        zero = "act_zero_point" if has_zero else body.scalar(MIDDLE, "uint8")
        codes = body.op("QuantizeLinear", x, "act_scale", zero)
        rows = body.op("DequantizeLinear", codes, "act_scale", zero)
        y = body.op("MatMul", rows, body.op("DequantizeLinear", "codes", "scales", *self._weight_zeros(), axis=1))
        y = self._biased(y)
        return body.op("Squeeze", y, body.ints(0)) if rank == 2 else y


class DequantizedConvBuilder(StockBuilder):
    """DequantizeLinear of an int4 or int8 weight before a float Conv."""

    def _product(self, x: str) -> str:
        body, geometry = self.body, self.variant.geometry
        assert geometry is not None
        weight = body.op("DequantizeLinear", "codes", "scales", *self._weight_zeros(), **self.settings["attributes"])
        bias = [self._float("bias")] if "bias" in self.variant.inputs else []
        return body.op("Conv", self._rounded(x), self._image_weight(weight), *bias, **geometry.attributes())
