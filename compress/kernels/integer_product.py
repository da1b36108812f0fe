"""`torch.ops.compress.integer_product`: the product of two activations that are quantized per tensor, static scales.

Attention multiplies activations with activations, which no packed layer does. The operator has no node of our own in
ONNX: onnxruntime fuses QuantizeLinear and DequantizeLinear around MatMul to MatMulIntegerToFloat, whose arithmetic is
the one here, product of codes times product of scales, bit by bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from compress.errors import RunError
from compress.kernels.onnx_activations import MIDDLE
from compress.kernels.schema import DOMAIN

INTEGER_BITS: Final = (4, 8)
"""Bits of signed operands, and (8 alone) of unsigned ones, that are multiplied as integers in ONNX."""
_EXACT: Final = 2**24  # whole numbers up to here are exact in float32
_Translation = Callable[..., Any]


def code_bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code; signed ones of b bits run from -2^(b-1), as everywhere in this package."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def rounded_codes(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """Codes as whole float32 numbers: `clamp(round(x / scale))`, half to even."""
    return (x.float() / scale).round_().clamp_(*code_bounds(bits, signed))


def integer_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, a_bits: int, b_bits: int, a_signed: bool
) -> Tensor:
    """`a [..., m, k]` times `b [..., k, n]`, each rounded to integer codes first; float32 `[..., m, n]`.

    Scales are `[1]`. b is signed. Sums of codes are exact: where float32 could not hold one, float64 adds.
    """
    codes_a, codes_b = rounded_codes(a, a_scale, a_bits, a_signed), rounded_codes(b, b_scale, b_bits, True)
    largest = max(map(abs, code_bounds(a_bits, a_signed))) * 2 ** (b_bits - 1)
    if a.shape[-1] * largest > _EXACT:
        codes_a, codes_b = codes_a.double(), codes_b.double()
    return (codes_a @ codes_b).float() * (a_scale * b_scale)


def _fake(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, a_bits: int, b_bits: int, a_signed: bool
) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)


def _no_gradient(ctx: Any, grad: Tensor) -> NoReturn:
    raise RunError("quantized attention has no gradient", hint="train before quantizing")


def _register() -> object:
    make: Any = torch.library.Library  # torch leaves its methods without annotations
    library = make(DOMAIN, "FRAGMENT")
    tensors = "Tensor a, Tensor b, Tensor a_scale, Tensor b_scale"
    signature = f"integer_product({tensors}, *, int a_bits, int b_bits, bool a_signed) -> Tensor"
    library.define(signature, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("integer_product", integer_product, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{DOMAIN}::integer_product", _fake, lib=library)
    torch.library.register_autograd(f"{DOMAIN}::integer_product", _no_gradient, lib=library)
    kept: object = library
    return kept


_LIBRARY: Final = _register()  # the registration lives as long as this object


def product_translation() -> dict[Callable[..., Any], _Translation]:
    """Entry of `custom_translation_table` for `torch.onnx.export`."""

    def translate(*tensors: Any, a_bits: int, b_bits: int, a_signed: bool) -> Any:
        return _translate(*tensors, a_bits=a_bits, b_bits=b_bits, a_signed=a_signed)

    translate.__name__ = "integer_product"
    translate.__signature__ = inspect.signature(integer_product)  # type: ignore[attr-defined]
    return {torch.ops.compress.integer_product.default: translate}


def _translate(a: Any, b: Any, a_scale: Any, b_scale: Any, *, a_bits: int, b_bits: int, a_signed: bool) -> Any:
    """Codes are held in uint8 (signed ones around 128), which integer products take exactly on every CPU."""
    from onnxscript import opset21 as op

    scales = [op.Squeeze(scale) for scale in (a_scale, b_scale)]
    if a_bits <= max(INTEGER_BITS):
        held = _bytes_and_back(a, scales[0], a_bits, a_signed), _bytes_and_back(b, scales[1], b_bits, True)
        return op.MatMul(*held)
    # No stock integer product takes 16-bit codes; these whole numbers are multiplied in float32.
    product = op.MatMul(_codes(a, scales[0], a_bits, a_signed), _codes(b, scales[1], b_bits, True))
    return op.Mul(product, op.Mul(*scales))


def _bytes_and_back(x: Any, scale: Any, bits: int, signed: bool) -> Any:
    from onnxscript import opset21 as op

    zero = _constant(MIDDLE if signed else 0, "uint8")
    codes = op.QuantizeLinear(x, scale, zero)
    if bits < max(INTEGER_BITS):
        low, high = code_bounds(bits, signed)
        codes = op.Clip(codes, _constant(MIDDLE + low, "uint8"), _constant(MIDDLE + high, "uint8"))
    return op.DequantizeLinear(codes, scale, zero)


def _codes(x: Any, scale: Any, bits: int, signed: bool) -> Any:
    from onnxscript import opset21 as op

    low, high = code_bounds(bits, signed)
    return op.Clip(op.Round(op.Div(x, scale)), _constant(low, "float32"), _constant(high, "float32"))


def _constant(value: float, dtype: str) -> Any:
    import numpy as np
    import onnx
    from onnxscript import opset21 as op

    return op.Constant(value=onnx.numpy_helper.from_array(np.array(value, dtype=dtype)))
