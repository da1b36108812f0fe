"""Which operators of a stock onnxruntime a low-bit layer becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import ExportError
from compress.export.stock_builders import (
    FLOAT32,
    INT8,
    Bnb4Builder,
    DequantizedConvBuilder,
    IntegerBuilder,
    NBitsBuilder,
    QdqMatMulBuilder,
    StockBuilder,
)
from compress.export.stock_weights import (
    IntegerWeight,
    block_of,
    divisor_of,
    is_nf4,
    matmul_bnb4,
    matmul_nbits,
    read_weight,
)
from compress.kernels.onnx_activations import MIDDLE, ActForm
from compress.kernels.onnx_graph import Body
from compress.kernels.onnx_variants import Variant
from compress.kernels.onnx_weights import WeightForm

_INT8_KERNELS = {(2, 32), (2, 64), (2, 128), *((bits, block) for bits in (4, 8) for block in (16, 32, 64, 128))}
_NF4 = 1  # quant_type of MatMulBnb4
_SAFE_CODE = 64  # two products with bytes still fit 16 bits
_FOLDED = "scales of groups are applied exactly, without the rounding of folding"
_VNNI = "on x86 CPUs without VNNI byte products saturate unless session.x64quantprecision is 1"


@dataclass(frozen=True)
class StockForm:
    """What one layer becomes.

    Attributes:
        operator: the operator that multiplies.
        became: the same in words.
        differs: what it does not express, or needs; empty when nothing is to be said.
        exact: it computes the checkpoint's arithmetic, up to the order of float32 sums.
        inputs: tensors that replace inputs of our operator, by name.
        builder: class of the function body.
        settings: what the body must know, mostly attributes of the operator.
    """

    operator: str
    became: str
    differs: tuple[str, ...]
    exact: bool
    inputs: Mapping[str, NDArray[Any]]
    builder: type[StockBuilder]
    settings: Mapping[str, Any]

    def write(self, body: Body, variant: Variant) -> StockBuilder:
        """The builder of the layer's body, as `function_for` takes it."""
        return self.builder(body, variant, self.settings)


def choose(
    variant: Variant, attributes: Mapping[str, Any], tensors: Mapping[str, Tensor], x: tuple[int | None, ...]
) -> StockForm | str:
    """The form of a call, or the reason why it stays a function body, inlined.

    `tensors` are the constant inputs by name, `x` the shape of the activations. ExportError for zero points of
    activations that are no bytes.
    """
    assert isinstance(variant.weight, WeightForm), "matrix products and convolutions have no other weights"
    if not {"codes", "scales"} <= tensors.keys() or ("zero_points" in variant.inputs) != ("zero_points" in tensors):
        return "the weight is no constant"
    if variant.act is not None and "act_zero_point" in tensors:
        _byte_zero(variant.act, tensors)  # every form has it as a byte
    channels = x[1 if variant.geometry else -1]
    assert channels is not None, "variants know the number of channels"
    k = channels
    if variant.geometry:
        k = k // variant.geometry.groups * variant.geometry.kernel[0] * variant.geometry.kernel[1]
    grouped = "group" in (variant.weight.scales, variant.weight.zeros)
    weight = read_weight(
        tensors, bits=int(attributes["bits"]), block_size=int(attributes["block_size"]), k=k, grouped=grouped
    )
    if weight is None and not variant.geometry and is_nf4(tensors.get("table")):
        return _bnb4(variant, attributes, tensors, k, grouped)
    if weight is None:
        return "its code values are no multiples of one step, which stock integer operators need"
    if variant.geometry:
        return _convolution(variant, weight, str(attributes["mode"]))
    return _linear(variant, weight, tensors, len(x), str(attributes["mode"]))


def _linear(
    variant: Variant, weight: IntegerWeight, tensors: Mapping[str, Tensor], rank: int, mode: str
) -> StockForm | str:
    act = variant.act
    whole_rows = weight.group == weight.k and weight.container_bits == 8
    if whole_rows and act and act.has_byte_codes:
        given = [name for name in ("act_scale", "act_zero_point") if name in variant.inputs]
        constant = all(name in tensors for name in given)
        if act.scale == "scalar" and constant and act.number_format.bits == 8:
            return _qdq(variant, weight, tensors, rank)
        return _integer(variant, weight)
    block = block_of(weight)
    if block is None:
        return f"groups of {weight.group} have no factor that MatMulNBits takes as a block (a power of two from 16)"
    return _nbits(variant, weight, block, mode)


def _nbits(variant: Variant, weight: IntegerWeight, block: int, mode: str) -> StockForm:
    act, bits = variant.act, weight.container_bits
    bytes_by_row = act is not None and act.format == "int8" and act.scale == "dynamic"
    level = INT8 if bytes_by_row and (bits, block) in _INT8_KERNELS else FLOAT32
    differs = _rounding_notes(act, level, block, weight.k)
    if bits != _bits(variant):
        differs.append(f"codes of {_bits(variant)} bits take {bits}")
    folds = mode == "folded" and weight.group < weight.k
    differs += [_FOLDED] if folds else []
    settings = {"K": weight.k, "N": weight.n, "bits": bits, "block_size": block, "accuracy_level": level}
    became = f"MatMulNBits of {bits} bits in blocks of {block}, accuracy level {level}"
    exact = level == FLOAT32 and not folds
    return StockForm("MatMulNBits", became, tuple(differs), exact, matmul_nbits(weight, block), NBitsBuilder, settings)


def _rounding_notes(act: ActForm | None, level: int, block: int, k: int) -> list[str]:
    """How MatMulNBits treats activations that the checkpoint rounds."""
    if act is None:
        return []
    if level == FLOAT32:
        return [f"computes in float32; activations are rounded to {act.format} before"]
    own = act.group or k
    if own == block or own >= k <= block:
        return ["activations are quantized alike, but single roundings may fall the other way"]
    return [
        f"activations are quantized per block of {block} instead of per {f'group of {own}' if act.group else 'row'}"
    ]


def _bnb4(
    variant: Variant, attributes: Mapping[str, Any], tensors: Mapping[str, Tensor], k: int, grouped: bool
) -> StockForm | str:
    size = int(attributes["block_size"])
    block = divisor_of(size if grouped else k)
    if block is None or k % block:
        return f"rows of {k} are no multiple of a block that MatMulBnb4 takes (a power of two from 16)"
    inputs = matmul_bnb4(tensors, size, k, block)
    settings = {"K": k, "N": len(tensors["codes"]), "block_size": block, "quant_type": _NF4}
    folds = attributes["mode"] == "folded"
    differs = [f"computes in float32; activations are rounded to {variant.act.format} before"] if variant.act else []
    differs += [_FOLDED] if folds else []
    became = f"MatMulBnb4 of NF4 in blocks of {block}"
    return StockForm("MatMulBnb4", became, tuple(differs), not folds, inputs, Bnb4Builder, settings)


def _bits(variant: Variant) -> int:
    """Bits of a code in the checkpoint."""
    assert isinstance(variant.weight, WeightForm)
    return variant.weight.bits


def _signed_matrix(weight: IntegerWeight) -> dict[str, NDArray[Any]]:
    """int8 `[k, n]` with its scales, and int8 zero points if it has them; one number, or one for each column."""
    found: dict[str, NDArray[Any]] = {"codes": np.ascontiguousarray(weight.signed().T)}
    if weight.symmetric:
        return {**found, "scales": _vector(weight.scales.numpy())}
    scales, zeros = np.broadcast_arrays(weight.scales.numpy(), weight.signed_zeros())
    return {**found, "scales": _vector(scales), "zero_points": _vector(zeros)}


def _vector(values: NDArray[Any]) -> NDArray[Any]:
    """`[n, 1]` as `[n]`, `[1, 1]` as a scalar."""
    return values.reshape(()) if values.size == 1 else np.ascontiguousarray(values.reshape(-1))


def _integer(variant: Variant, weight: IntegerWeight) -> StockForm:
    assert variant.act is not None
    by = "per row" if variant.act.scale == "dynamic" else "with the given scale"
    became, inputs = f"MatMulInteger, activations quantized {by}", _signed_matrix(weight)
    settings = {"zeros": inputs["scales"].shape}
    notes = _byte_notes(variant, weight)
    return StockForm("MatMulInteger", became, notes, True, inputs, IntegerBuilder, settings)


def _qdq(variant: Variant, weight: IntegerWeight, tensors: Mapping[str, Tensor], rank: int) -> StockForm:
    assert variant.act is not None
    inputs = _signed_matrix(weight)
    inputs["act_scale"] = tensors["act_scale"].float().reshape(()).numpy()
    if "act_zero_point" in tensors:
        inputs["act_zero_point"] = _byte_zero(variant.act, tensors).reshape(())
    became = "MatMul between QuantizeLinear and DequantizeLinear, one integer product in onnxruntime"
    settings = {"rank": rank, "zeros": inputs["scales"].shape}
    return StockForm("MatMul", became, _byte_notes(variant, weight), True, inputs, QdqMatMulBuilder, settings)


def _byte_zero(act: ActForm, tensors: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The zero points of activations whose codes are unsigned bytes."""
    zeros = tensors["act_zero_point"].float()
    shifted = zeros + (MIDDLE if act.number_format.signed else 0)
    found = shifted.to(torch.uint8)
    if not torch.equal(found.float(), shifted):
        raise ExportError(
            f"act_zero_point is {zeros.flatten()[:3].tolist()}, no code of {act.format}",
            hint="calibrate again, or use symmetric activations",
        )
    array: NDArray[np.uint8] = found.numpy()
    return array


def _byte_notes(variant: Variant, weight: IntegerWeight) -> tuple[str, ...]:
    bits = _bits(variant)
    notes = [] if bits == 8 else [f"codes of {bits} bits take 8"]
    largest = int(np.abs(weight.signed().astype(np.int16)).max(initial=0))
    return tuple(notes if largest <= _SAFE_CODE else [*notes, _VNNI])


def _convolution(variant: Variant, weight: IntegerWeight, mode: str) -> StockForm | str:
    if variant.integer_route:
        return "QLinearConv would round the output to 8 bits too"
    if _bits(variant) not in (4, 8) or weight.bits != _bits(variant):
        return f"there is no stock weight of {_bits(variant)} bits with such values for Conv"
    import ml_dtypes

    kind = ml_dtypes.int4 if weight.bits == 4 else np.int8
    grouped = weight.group < weight.k
    inputs: dict[str, NDArray[Any]] = {"codes": weight.signed().astype(kind)}
    scales = weight.scales.expand(weight.n, -1).contiguous()
    if grouped:
        scales = scales.expand(weight.n, -(-weight.k // weight.group)).contiguous()
    inputs["scales"] = scales.numpy() if grouped else scales.numpy().reshape(-1)
    if not weight.symmetric:
        points = np.broadcast_to(weight.signed_zeros(), scales.shape)
        inputs["zero_points"] = np.ascontiguousarray(points.reshape(inputs["scales"].shape)).astype(kind)
    zeros = inputs["scales"].shape if kind is np.int8 else None
    settings = {"attributes": {"axis": 1, "block_size": weight.group} if grouped else {"axis": 0}, "zeros": zeros}
    differs = ["computes in float32: the weight is decoded in each run"]
    if variant.act:
        differs[0] += f", activations are rounded to {variant.act.format} before"
    folds = mode == "folded" and grouped
    differs += [_FOLDED] if folds else []
    became = f"DequantizeLinear of int{weight.bits} before Conv"
    return StockForm("Conv", became, tuple(differs), not folds, inputs, DequantizedConvBuilder, settings)
