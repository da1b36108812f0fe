"""The one operator table: torch operators, ONNX schemas and export translations are rendered from it.

`qmatmul` and `qconv2d` multiply (quantized) activations with packed low-bit weights, `vqmatmul` and `vqconv2d` with
vector-quantized ones.

Weights. `codes` is uint8 `[n, k_blocks, block_bytes]`: row-major output channels, blocks of `block_size` consecutive
input positions, codes packed least significant bits first (low nibble first for 4 bits, onnxruntime's MatMulNBits
layout), the last block padded with zero codes. `k_blocks = ceil(k / block_size)`;
`block_bytes = ceil(block_size * bits / 8)`. Without `table` a code u means the integer `u - z`, where z is the zero
point of its block, `2**(bits - 1)` when `zero_points` is absent. With `table` (float32, `2**bits` entries) it means
`table[u]`. The weight is that value times its block's scale. `scales` and `zero_points` broadcast against
`[n, k_blocks]`: `[1, 1]` per tensor, `[n, 1]` per channel, `[n, k_blocks]` per group. Scales of type uint8 are E8M0
exponents: u means `2**(u - 127)`. `global_scale` multiplies all scales first.

Activations. `act_format` is `none` (float) or a format name (`int8`, `uint8`, `int4`, `uint4`, `fp8_e4m3`, …). With
`act_scale` absent each row (all positions of one token; for convolutions one image) gets its own scale, its largest
magnitude over the format's largest value. With `act_scale` (and `act_zero_point`, for unsigned integers) given, those
are used as they broadcast against the rows.

Vector quantization. `vqmatmul` and `vqconv2d` cut the row of an output channel into sub-vectors of `d` input positions,
the last one padded, and look each up in `codebook` `[2**bits, d]` (float32, float16 or int8). `codes` is uint8 `[n,
ceil(ceil(k / d) * bits / 8)]`: the codes of a channel as one bit stream, least significant bits first. The weight is
`codebook[code] * scale`, `scales` being `[1, 1]` or `[n, 1]`. In mode `folded` a floating-point codebook is rounded to
int8: `round(codebook * (127 / max|codebook|))`, half to even, in units of `max|codebook| / 127`, which adds at most
`max|codebook| * scale / 254` to a weight. An int8 codebook is exact in both modes. All else is as in `qmatmul`.

Output. `activation` is applied to the product with bias and low-rank branch; `residual` is added last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DOMAIN = "compress"
VERSION = 1

AttributeType = Literal["int", "ints", "str"]


@dataclass(frozen=True)
class Input:
    """One tensor input; `onnx_types` are the ONNX tensor types it may have."""

    name: str
    onnx_types: tuple[str, ...]
    optional: bool = False
    doc: str = ""


@dataclass(frozen=True)
class Attribute:
    """One attribute with its default; `None` means that it must be given."""

    name: str
    type: AttributeType
    default: int | str | tuple[int, ...] | None = None
    doc: str = ""


@dataclass(frozen=True)
class Operator:
    """One operator: `torch.ops.compress.<name>`, ONNX `compress::<onnx_name>`, output in x's type."""

    name: str
    onnx_name: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    doc: str

    def torch_signature(self) -> str:
        """The schema string `torch.library` wants."""
        tensors = [f"Tensor{'?' if i.optional else ''} {i.name}{'=None' if i.optional else ''}" for i in self.inputs]
        return f"{self.name}({', '.join([*tensors, '*', *map(_torch_attribute, self.attributes)])}) -> Tensor"


def _torch_attribute(a: Attribute) -> str:
    kind = {"int": "int", "ints": "int[]", "str": "str"}[a.type]
    if a.default is None:
        return f"{kind} {a.name}"
    if isinstance(a.default, str):
        return f'{kind} {a.name}="{a.default}"'
    if isinstance(a.default, tuple):
        return f"{kind} {a.name}=[{', '.join(map(str, a.default))}]"
    return f"{kind} {a.name}={a.default}"


_FLOAT = ("tensor(float)", "tensor(float16)")
_SCALE = ("tensor(float)", "tensor(float16)", "tensor(float8e4m3fn)", "tensor(uint8)")

ACTIVATIONS = ("none", "gelu_tanh", "silu")
"""What `activation` may be: nothing, GELU in its tanh approximation, x * sigmoid(x)."""

_INPUTS = (
    Input("x", _FLOAT, doc="Activations; the last axis (channel axis 1 of convolutions) is contracted."),
    Input("codes", ("tensor(uint8)",), doc="Packed weight codes [n, k_blocks, block_bytes]."),
    Input("scales", _SCALE, doc="Weight scales, broadcasting against [n, k_blocks]; uint8: exponents of 2, plus 127."),
    Input("zero_points", ("tensor(uint8)",), True, "Unsigned zero points, broadcasting against [n, k_blocks]."),
    Input("table", ("tensor(float)",), True, "Code values, 2**bits entries."),
    Input("bias", _FLOAT, True, "[n]."),
    Input("act_scale", ("tensor(float)",), True, "Static activation scale."),
    Input("act_zero_point", ("tensor(float)",), True, "Static activation zero point, integral values."),
    Input("smooth", ("tensor(float)",), True, "1/s per input channel, multiplied into x first."),
    Input("low_rank_a", _FLOAT, True, "[k, r]: x @ a @ b is added, from unquantized (smoothed) x."),
    Input("low_rank_b", _FLOAT, True, "[r, n]."),
    Input("global_scale", ("tensor(float)",), True, "One number that multiplies all weight scales."),
    Input("residual", _FLOAT, True, "Added to the result last; shape and type of y."),
)
_ATTRIBUTES = (
    Attribute("bits", "int", doc="Bits of a weight code, 1 to 8."),
    Attribute("block_size", "int", doc="Input positions that share a scale; k for per-channel and per-tensor scales."),
    Attribute("act_format", "str", "none", "Activation format by name; none leaves x in floating point."),
    Attribute("act_group", "int", 0, "Positions that share a dynamic activation scale; 0: the whole row."),
    Attribute("mode", "str", "exact", "exact, or folded: block scales or a table of fractions rounded to int8."),
    Attribute("activation", "str", "none", f"Applied before the residual is added: {', '.join(ACTIVATIONS)}."),
)
_GEOMETRY = (
    Attribute("kernel", "ints", doc="Kernel height and width."),
    Attribute("stride", "ints", (1, 1)),
    Attribute("padding", "ints", (0, 0)),
    Attribute("dilation", "ints", (1, 1)),
    Attribute("groups", "int", 1),
)

QMATMUL = Operator("qmatmul", "QMatMul", _INPUTS, _ATTRIBUTES, "y = x @ W.T + bias, x [..., k], W [n, k], y [..., n].")
QCONV2D = Operator(
    "qconv2d",
    "QConv2d",
    _INPUTS,
    (*_ATTRIBUTES, *_GEOMETRY),
    "2-D convolution, x [b, c, h, w]; W [n, c/groups, kh, kw] is quantized as [n, c/groups * kh * kw].",
)

_VQ_INPUTS = (
    _INPUTS[0],
    Input("codes", ("tensor(uint8)",), doc="Packed codes of sub-vectors [n, bytes]."),
    Input("codebook", ("tensor(float)", "tensor(float16)", "tensor(int8)"), doc="Codewords [2**bits, d]."),
    Input("scales", _FLOAT, doc="Weight scales, [1, 1] or [n, 1]."),
    *(i for i in _INPUTS if i.optional and i.name not in ("zero_points", "table", "global_scale")),
)
_VQ_ATTRIBUTES = (
    Attribute("bits", "int", doc="Bits of a code, 1 to 8."),
    Attribute("d", "int", doc="Input positions that one code stands for."),
    *(a for a in _ATTRIBUTES if a.name in ("act_format", "act_group")),
    Attribute("mode", "str", "exact", "exact, or folded: the codebook rounded to int8."),
    *(a for a in _ATTRIBUTES if a.name == "activation"),
)

VQMATMUL = Operator("vqmatmul", "VQMatMul", _VQ_INPUTS, _VQ_ATTRIBUTES, f"{QMATMUL.doc} W is vector-quantized.")
VQCONV2D = Operator("vqconv2d", "VQConv2d", _VQ_INPUTS, (*_VQ_ATTRIBUTES, *_GEOMETRY), QCONV2D.doc)
OPERATORS: tuple[Operator, ...] = (QMATMUL, QCONV2D, VQMATMUL, VQCONV2D)
