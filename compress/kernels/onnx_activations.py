"""Quantization of activations in standard ONNX operators, for the bodies of the model-local functions.

The arithmetic is that of `compress/formats/activations.py`, operation by operation, so that roundings agree: the scale
is `amax / max_value`, codes are `round(x / scale)`, half to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compress.errors import ExportError
from compress.formats import Format, get_format
from compress.kernels.onnx_graph import Body

WHOLE = 2**30  # block size of QuantizeLinear: the whole axis, whatever its length
MIDDLE = 128  # zero point of signed codes held in uint8
_CASTS = {"fp8_e4m3": "FLOAT8E4M3FN", "fp8_e5m2": "FLOAT8E5M2"}


@dataclass(frozen=True)
class ActForm:
    """What activation quantization depends on.

    Attributes:
        format: name of the number format.
        scale: `dynamic` (each row or image its own), `scalar` (one given number), `given` (any given shape).
        zero_point: a zero point is given.
        group: positions that share a scale, 0 for the whole row; length: of a row; rank: of x. Both 0 without groups.
    """

    format: str
    scale: str
    zero_point: bool = False
    group: int = 0
    length: int = 0
    rank: int = 0

    @property
    def number_format(self) -> Format:
        return get_format(self.format)

    @property
    def has_byte_codes(self) -> bool:
        """Whether `byte_codes` can express it."""
        return self.number_format.kind == "int" and self.scale != "given" and not self.group


class ByteCodes(NamedTuple):
    """Activations as uint8: names of codes (x's shape), scale (`[…, 1]` or scalar) and zero point (scalar, uint8)."""

    codes: str
    scale: str
    zero_point: str


def byte_codes(body: Body, form: ActForm, x: str) -> ByteCodes:
    """Integer codes of the float32 value `x` `[…, k]`, held in uint8 whatever the format: signed ones around 128.

    One QuantizeLinear replaces division, rounding and clipping. uint8, because that is what integer matrix products
    take exactly on every CPU; signed by signed or by 8-bit signed saturates on x86 without VNNI.
    """
    fmt = form.number_format
    middle = MIDDLE if fmt.signed else 0
    if form.zero_point:
        given = body.op("Reshape", "act_zero_point", body.ints())
        zero = body.cast(body.op("Add", given, body.scalar(middle)) if middle else given, "UINT8")
    else:
        zero = body.scalar(middle, "uint8")
    if form.scale == "scalar":
        scale = body.op("Reshape", "act_scale", body.ints())
        codes = body.op("QuantizeLinear", x, scale, zero)
        return ByteCodes(_clip(body, fmt, codes, middle), scale, zero)
    scale = _dynamic_scale(body, fmt, x)
    zeros = body.op("Expand", zero, body.op("Shape", scale))
    codes = body.op("QuantizeLinear", x, scale, zeros, axis=-1, block_size=WHOLE)
    return ByteCodes(codes if fmt.signed else _clip(body, fmt, codes, middle), scale, zero)


def rounded(body: Body, form: ActForm, x: str) -> str:
    """The float32 value `x` `[…, k]` rounded to the format and back."""
    if form.has_byte_codes:
        return _byte_round_trip(body, form, x)
    rows = _to_groups(body, form, x) if form.group else x
    scale = _scale(body, form, rows)
    ratio = body.op("Div", rows, scale)
    result = body.op("Mul", _nearest(body, form, ratio), scale)
    return _from_groups(body, form, result, x) if form.group else result


def _byte_round_trip(body: Body, form: ActForm, x: str) -> str:
    """Codes and back. Cast, Sub and Mul, because onnxruntime's DequantizeLinear in blocks is several times slower."""
    import onnx

    fmt = form.number_format
    if form.zero_point or not fmt.signed:
        codes = byte_codes(body, form, x)
        values = body.cast(codes.codes, "FLOAT")
        if form.zero_point:
            values = body.op("Sub", values, body.cast(codes.zero_point, "FLOAT"))
        return body.op("Mul", values, codes.scale)
    int8 = onnx.TensorProto.INT8
    if form.scale == "scalar":
        scale = body.op("Reshape", "act_scale", body.ints())
        signed = _clip(body, fmt, body.op("QuantizeLinear", x, scale, output_dtype=int8), 0)
    else:
        scale = _dynamic_scale(body, fmt, x)
        signed = body.op("QuantizeLinear", x, scale, axis=-1, block_size=WHOLE, output_dtype=int8)
    return body.op("Mul", body.cast(signed, "FLOAT"), scale)


def _dynamic_scale(body: Body, fmt: Format, x: str) -> str:
    """Scale of each row `[…, 1]`. Rows of zeros get the smallest normal number, which leaves them zeros."""
    largest = body.op("ReduceMax", body.op("Abs", x), body.ints(-1), keepdims=1)
    scale = body.op("Div", largest, body.scalar(fmt.max_value))
    return body.op("Max", scale, body.scalar(float(np.finfo(np.float32).tiny)))


def _scale(body: Body, form: ActForm, rows: str) -> str:
    if form.scale == "dynamic":
        return _dynamic_scale(body, form.number_format, rows)
    return _last_axis(body, form, "act_scale")


def _last_axis(body: Body, form: ActForm, name: str) -> str:
    """A given tensor that broadcasts against the rows, or against their groups when there are any."""
    return body.op("Unsqueeze", name, body.ints(-1)) if form.group else name


def _nearest(body: Body, form: ActForm, ratio: str) -> str:
    """The representable numbers nearest to `x / scale`, saturating."""
    fmt = form.number_format
    if fmt.kind == "int":
        return _nearest_integer(body, form, ratio)
    if fmt.name in _CASTS:
        # ONNX casts to float8 round half to even and, by default, saturate.
        return body.cast(body.cast(ratio, _CASTS[fmt.name]), "FLOAT")
    if fmt.name == "fp4_e2m1":
        return _nearest_e2m1(body, ratio)
    raise ExportError(f"{fmt.name} activations have no ONNX form", hint="use int8, fp8 or fp4_e2m1 activations")


def _nearest_integer(body: Body, form: ActForm, ratio: str) -> str:
    low, high = form.number_format.code_range
    codes = body.op("Round", ratio)
    zero = _last_axis(body, form, "act_zero_point") if form.zero_point else None
    if zero:
        codes = body.op("Add", codes, zero)
    codes = body.op("Clip", codes, body.scalar(low), body.scalar(high))
    return body.op("Sub", codes, zero) if zero else codes


def _nearest_e2m1(body: Body, ratio: str) -> str:
    """FP4 numbers 0 ½ 1 1½ 2 | 3 4 | 6: three evenly spaced stretches, each rounded by itself, half to even."""
    stretches = []
    rest = ratio
    for reach, step in ((2.0, 0.5), (2.0, 1.0), (2.0, 2.0)):
        part = body.op("Clip", rest, body.scalar(-reach), body.scalar(reach))
        rest = body.op("Sub", rest, part)
        if step != 1:
            part = body.op("Div", part, body.scalar(step))
        part = body.op("Round", part)
        stretches.append(part if step == 1 else body.op("Mul", part, body.scalar(step)))
    return body.op("Add", body.op("Add", stretches[0], stretches[1]), stretches[2])


def _clip(body: Body, fmt: Format, codes: str, middle: int) -> str:
    """Codes, with `middle` standing for 0, limited to the format's range; QuantizeLinear itself saturates to 8 bits."""
    low, high = fmt.code_range
    if fmt.bits == 8:
        return codes
    dtype = "uint8" if middle or not fmt.signed else "int8"
    return body.op("Clip", codes, body.scalar(low + middle, dtype), body.scalar(high + middle, dtype))


def _to_groups(body: Body, form: ActForm, x: str) -> str:
    """`[…, groups, group]`; zeros fill the last group, which changes no largest magnitude."""
    missing = -form.length % form.group
    if missing:
        x = body.op("Pad", x, body.ints(*[0] * (2 * form.rank - 1), missing))
    return body.op("Reshape", x, body.ints(*[0] * (form.rank - 1), -1, form.group))


def _from_groups(body: Body, form: ActForm, groups: str, x: str) -> str:
    if form.length % form.group == 0:
        return body.op("Reshape", groups, body.op("Shape", x))
    flat = body.op("Reshape", groups, body.ints(*[0] * (form.rank - 1), -1))
    return body.op("Slice", flat, body.ints(0), body.ints(form.length), body.ints(-1))
