"""Number formats: the values a code of a few bits can stand for, and the nearest code of a real number."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from compress.errors import FormatError

Kind = Literal["int", "float"]
ScaleDtype = Literal["float32", "float16", "e8m0", "e4m3"]
"""Stored types of scales: e8m0 is a power of two by its exponent, e4m3 an 8-bit float."""

# Formats that torch can cast to, much faster than a search of the table; a test proves that the two agree.
_TORCH_CASTS: Final = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class BlockLayout:
    """Blocks that are part of a format: `group` positions share a scale of that type.

    `global_scale`: one float32 number per weight multiplies all its scales.
    """

    group: int
    scale_dtype: ScaleDtype
    global_scale: bool = False

    def describe(self) -> str:
        """`groups of 16, e4m3 scales, a global scale`."""
        return f"groups of {self.group}, {self.scale_dtype} scales" + (", a global scale" * self.global_scale)


@dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
        name: the name recipes use.
        bits: bits of a code.
        kind: `int` (evenly spaced) or `float` (spaced by a table).
        values: what each of the `2**bits` codes stands for, or None for integers. Codes that the standard
            gives to NaN or infinity stand for the largest finite value of their sign, so decoding never yields either.
        max_value: the magnitude that symmetric scaling maps the largest magnitude to.
        signed: whether negative values exist.
        citation: where the format is defined.
        layout: the blocks and scales that the format prescribes, or None when a weight may choose.
        weights_only: activations cannot have this format.
    """

    name: str
    bits: int
    kind: Kind
    values: tuple[float, ...] | None
    max_value: float
    signed: bool
    citation: str
    layout: BlockLayout | None = None
    weights_only: bool = False

    def table(self) -> Tensor | None:
        """Code values, float32 `[2**bits]`, or None for integers. The caller owns the tensor."""
        return None if self.values is None else torch.tensor(self.values, dtype=torch.float32)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer of an integer format; (-8, 7) for int4, (0, 15) for uint4."""
        if self.signed:
            return -(1 << self.bits - 1), (1 << self.bits - 1) - 1
        return 0, (1 << self.bits) - 1


def get_format(name: str) -> Format:
    """The format of that name; FormatError with the closest name when there is none."""
    try:
        return FORMATS[name]
    except KeyError:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"formats: {', '.join(FORMATS)}"
        raise FormatError(f"there is no number format {name!r}", hint=hint) from None


def nearest_codes(values: Tensor, fmt: Format) -> Tensor:
    """Codes (uint8, same shape) of the table entries nearest to `values`, given in units of the scale.

    Ties go to the even code, which is the even mantissa for the minifloats; values beyond the largest saturate;
    of several codes with one value (the two zeros, codes unusable for NaN) the lowest is used.
    """
    if fmt.values is None:
        raise FormatError(f"{fmt.name} is an integer format and has no table")
    if fmt.name in _TORCH_CASTS:
        codes = values.clamp(-fmt.max_value, fmt.max_value).to(_TORCH_CASTS[fmt.name]).view(torch.uint8)
        return codes.masked_fill_(codes == 0x80, 0)
    return _search(values, fmt.values)


def nearest_values(values: Tensor, fmt: Format) -> Tensor:
    """The float32 table entries nearest to `values`: what `nearest_codes` stands for (zeros may be negative)."""
    if fmt.name in _TORCH_CASTS:
        return values.clamp(-fmt.max_value, fmt.max_value).to(_TORCH_CASTS[fmt.name]).float()
    table = torch.tensor(fmt.values, dtype=torch.float32, device=values.device)
    return look_up(table, nearest_codes(values, fmt))


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """`table[codes]` for uint8 codes, with 32-bit indices to spare memory."""
    return table.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)


def _search(values: Tensor, table: tuple[float, ...]) -> Tensor:
    first: dict[float, int] = {}
    for code, value in enumerate(table):
        first.setdefault(value, code)  # 0.0 == -0.0: the positive zero comes first
    grid = sorted(first)
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(grid)], dtype=torch.float64)
    # The float32 numbers next to a middle that is none itself.
    nearest, end = middles.float(), torch.tensor(torch.inf)
    lower = torch.where(nearest > middles, nearest.nextafter(-end), nearest).to(values.device)
    upper = torch.where(nearest < middles, nearest.nextafter(end), nearest).to(values.device)
    codes = torch.tensor([first[value] for value in grid], dtype=torch.uint8, device=values.device)
    values = values.contiguous()  # what bucketize wants
    below = codes[torch.bucketize(values, lower)]  # a value on a middle goes down here
    above = codes[torch.bucketize(values, upper, right=True)]  # and up here
    return torch.where(below % 2 == 0, below, above)


def _minifloat(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> tuple[float, ...]:
    """Values of a sign-exponent-mantissa format by code; what would exceed `largest` (NaN, infinity) becomes it."""
    magnitudes = []
    for exponent in range(1 << exponent_bits):
        for mantissa in range(1 << mantissa_bits):
            fraction = mantissa / (1 << mantissa_bits)
            normal = (1 + fraction) * 2.0 ** (exponent - bias)
            value = normal if exponent else fraction * 2.0 ** (1 - bias)
            magnitudes.append(min(value, largest))
    return (*magnitudes, *(-value for value in magnitudes))


_E2M1 = _minifloat(2, 1, 1, 6.0)
# The float32 values of QLoRA's appendix E: quantiles of a normal distribution, scaled to [-1, 1], with an exact zero.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_OCP_FP8 = "OCP 8-bit Floating Point Specification (OFP8), revision 1.0, 2023"
_OCP_MX = "OCP Microscaling Formats (MX) Specification, version 1.0, 2023"
_QLORA = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, arXiv 2305.14314, appendix E"
_NVFP4 = "NVIDIA 2025, Pretraining Large Language Models with NVFP4, arXiv 2509.25149, section 2"


def _integer(bits: int, signed: bool = True) -> Format:
    largest = (1 << bits - signed) - 1
    name = f"{'' if signed else 'u'}int{bits}"
    kind = "two's complement range" if signed else "unsigned range, for activations"
    return Format(name, bits, "int", None, float(largest), signed, f"{bits}-bit integers, {kind}")


_ALL = (
    _integer(8),
    _integer(6),
    _integer(4),
    _integer(3),
    _integer(2),
    _integer(8, signed=False),
    _integer(4, signed=False),
    Format("fp8_e4m3", 8, "float", _minifloat(4, 3, 7, 448.0), 448.0, True, f"{_OCP_FP8} (E4M3, no infinities)"),
    Format("fp8_e5m2", 8, "float", _minifloat(5, 2, 15, 57344.0), 57344.0, True, f"{_OCP_FP8} (E5M2)"),
    Format("fp4_e2m1", 4, "float", _E2M1, 6.0, True, f"{_OCP_MX} (FP4 E2M1 elements)"),
    Format("nf4", 4, "float", _NF4, 1.0, True, _QLORA, weights_only=True),
    Format("mxfp4", 4, "float", _E2M1, 6.0, True, f"{_OCP_MX} (MXFP4)", BlockLayout(32, "e8m0"), True),
    Format("nvfp4", 4, "float", _E2M1, 6.0, True, _NVFP4, BlockLayout(16, "e4m3", global_scale=True), True),
)
FORMATS: Final[dict[str, Format]] = {fmt.name: fmt for fmt in _ALL}
