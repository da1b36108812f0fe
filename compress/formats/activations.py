"""Quantization of activations: the scale of each row, codes, and the round trip that simulates them."""

from __future__ import annotations

from torch import Tensor

from compress.errors import FormatError
from compress.formats.codebook import Format, nearest_values


def dynamic_scale(x: Tensor, fmt: Format, dims: tuple[int, ...]) -> Tensor:
    """Scales, float32 with `dims` kept as 1, that map the largest magnitude over `dims` to the largest value.

    Zeros get scale 1. NaN and infinity stay, so that a broken row stays visibly broken.
    """
    scale = x.abs().amax(dims, keepdim=True).float() / fmt.max_value
    return scale.masked_fill_(scale == 0, 1.0)


def integer_codes(x: Tensor, fmt: Format, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Codes of an integer format as whole float32 numbers: `clamp(round(x / scale) + zero_point)`, half to even."""
    if fmt.kind != "int":
        raise FormatError(f"{fmt.name} is not an integer format")
    codes = (x.float() / scale).round_()
    if zero_point is not None:
        codes = codes + zero_point
    return codes.clamp_(*fmt.code_range)


def quantize_dequantize(x: Tensor, fmt: Format, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """x rounded to the format's values under `scale` (and `zero_point`, integers only), float32 of the same shape.

    `scale` and `zero_point` broadcast against x.
    """
    if fmt.kind == "float":
        if zero_point is not None:
            raise FormatError(f"{fmt.name} has no zero points")
        return nearest_values(x.float() / scale, fmt) * scale
    codes = integer_codes(x, fmt, scale, zero_point)
    if zero_point is not None:
        codes -= zero_point
    return codes.mul_(scale)
