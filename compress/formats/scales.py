"""What a weight is stored as (`WeightSpec`), its scales and zero points, and how many bytes that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.formats.codebook import Format, ScaleDtype, get_format
from compress.formats.layout import packed_bytes, to_blocks

Granularity = Literal["tensor", "channel", "group"]
_SCALE_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "e8m0": torch.uint8,  # the exponent plus 127; kept as bytes because few tools know torch's float8_e8m0fnu
    "e4m3": torch.float8_e4m3fn,
}
# Integers of the same bits, whose successor is the next number, for types that may round a scale too far down.
_BITS = {"float16": torch.int16, "e4m3": torch.uint8}
_LARGEST_E4M3 = 448.0
_BEYOND_E4M3 = 464.0  # from here on, rounding to nearest leaves the type
_BIAS = 127  # of E8M0


@dataclass(frozen=True)
class WeightSpec:
    """How a weight is stored: number format, which positions share a scale, zero points or not, scale type.

    `group` positions along the flattened input axis share a scale, when granularity is `group`. Zero points
    (`symmetric=False`) exist for signed integer formats only. Formats that prescribe their blocks and scales (MXFP4,
    NVFP4) take no others, and no other format takes scales of type e8m0 or e4m3: `natural` fills them in.
    Raises FormatError when the fields do not go together.
    """

    format: str
    granularity: Granularity = "channel"
    group: int | None = None
    symmetric: bool = True
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        if not fmt.signed:
            raise FormatError(f"{fmt.name} is for activations", hint=f"use int{fmt.bits} with symmetric=False")
        if not self.symmetric and fmt.kind == "float":
            raise FormatError(f"{fmt.name} has no zero points", hint="use symmetric=True, or an integer format")
        if self.granularity not in ("tensor", "channel", "group"):
            raise FormatError(f"granularity {self.granularity!r} is not tensor, channel or group")
        if (self.granularity == "group") != (self.group is not None):
            raise FormatError(f"granularity {self.granularity!r} with group={self.group}", hint="they go together")
        if self.group is not None and self.group < 1:
            raise FormatError(f"group must be at least 1, not {self.group}")
        if self.scale_dtype not in _SCALE_DTYPES:
            raise FormatError(f"scale_dtype {self.scale_dtype!r} is not {', '.join(_SCALE_DTYPES)}")
        self._check_layout(fmt)

    def _check_layout(self, fmt: Format) -> None:
        if fmt.layout is None:
            if self.scale_dtype not in ("float32", "float16"):
                raise FormatError(f"{fmt.name} has no {self.scale_dtype} scales", hint="use float32 or float16")
        elif (self.group, self.scale_dtype) != (fmt.layout.group, fmt.layout.scale_dtype):
            need = f"groups of {fmt.layout.group} with {fmt.layout.scale_dtype} scales"
            given = f"{self.granularity} granularity, group={self.group}, {self.scale_dtype}"
            raise FormatError(f"{fmt.name} has {need}, not {given}", hint=f"use WeightSpec.natural({fmt.name!r})")

    @classmethod
    def natural(cls, name: str) -> Self:
        """A weight of the format of that name in its own blocks, or per channel where it prescribes none."""
        layout = get_format(name).layout
        return cls(name) if layout is None else cls(name, "group", layout.group, True, layout.scale_dtype)

    @property
    def number_format(self) -> Format:
        """The format object."""
        return get_format(self.format)

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """The type scales are stored in."""
        return _SCALE_DTYPES[self.scale_dtype]

    @property
    def has_global_scale(self) -> bool:
        """Whether one more number multiplies all scales."""
        layout = self.number_format.layout
        return layout is not None and layout.global_scale

    def block_size(self, k: int) -> int:
        """Positions that are packed together, and share a scale under `group`: k unless `group` is smaller."""
        return k if self.group is None else min(self.group, k)


class Scales(NamedTuple):
    """Scales (`scale_dtype`) and zero points (uint8, None when symmetric), broadcasting against [n, k_blocks].

    `global_scale`: float32 `[1]`, a factor of all scales, for formats that have one.
    """

    scales: Tensor
    zero_points: Tensor | None
    global_scale: Tensor | None = None

    def values(self) -> Tensor:
        """What codes are multiplied with, float32 in the shape of `scales`."""
        return scale_values(self.scales, self.global_scale)


def scale_values(scales: Tensor, global_scale: Tensor | None = None) -> Tensor:
    """Float32 scales of stored ones: uint8 is an E8M0 exponent, `2**(u - 127)`; times `global_scale`, if there is one.

    The product is rounded to float32 before anything is multiplied with it. The exponent 255 is NaN.
    """
    stored = scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales
    values = stored.float()
    return values if global_scale is None else values * global_scale.float()


class ByteCount(NamedTuple):
    """Stored bytes by part; a global scale counts among the scales."""

    codes: int
    scales: int
    zero_points: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(self)


def code_shape(shape: tuple[int, ...], spec: WeightSpec) -> tuple[int, int, int]:
    """Shape `(n, k_blocks, block_bytes)` of the packed codes of a weight of logical `shape`."""
    n, k = _rows(shape)
    block = spec.block_size(k)
    return n, -(-k // block), packed_bytes(block, spec.number_format.bits)


def scale_shape(shape: tuple[int, ...], spec: WeightSpec) -> tuple[int, int]:
    """Shape of the scales and zero points of a weight of logical `shape`."""
    n, blocks, _ = code_shape(shape, spec)
    return {"tensor": (1, 1), "channel": (n, 1), "group": (n, blocks)}[spec.granularity]


def predicted_bytes(shape: tuple[int, ...], spec: WeightSpec) -> ByteCount:
    """Bytes a weight of that shape takes once quantized, exactly, without its values."""
    count = math.prod(scale_shape(shape, spec))
    scales = count * spec.torch_scale_dtype.itemsize + (4 if spec.has_global_scale else 0)
    return ByteCount(math.prod(code_shape(shape, spec)), scales, 0 if spec.symmetric else count)


def weight_scales(weight: Tensor, spec: WeightSpec) -> Scales:
    """Scales from the extremes of each block of a weight `[n, ...]`, as they will be stored.

    Symmetric: `amax / max_value`. Asymmetric: `(max - min) / (2**bits - 1)` over a range widened to contain 0,
    zero point `round(-min / scale)`. Blocks of zeros get scale 1. Rounding to `scale_dtype` happens here, so that codes
    are chosen for the stored scale; it goes up where rounding to nearest would clip the extremes by over half a step.

    E8M0 (MX section 6.3): `2**(floor(log2(amax)) - floor(log2(max_value)))`; the extremes saturate. With a global
    scale: that is `amax of the weight / (448 * max_value)`, the blocks' are `amax / max_value / global`.
    Raises FormatError for weights that are not finite, or too large for `scale_dtype`.
    """
    n, k = _rows(tuple(weight.shape))
    blocks = to_blocks(weight.detach().reshape(n, k).float(), spec.block_size(k))  # n k_blocks block
    axes: tuple[int, ...] = (0, 1, 2) if spec.granularity == "tensor" else (2,)
    high = blocks.amax(axes, keepdim=True)[..., 0].clamp_min(0)  # padding is 0, so it never matters
    low = blocks.amin(axes, keepdim=True)[..., 0].clamp_max(0)
    if not bool(torch.isfinite(high - low).all()):
        raise FormatError("the weight has values that are not finite, or too large to scale")
    if spec.symmetric:
        return _symmetric_scales(torch.maximum(high, -low), spec)
    levels = (1 << spec.number_format.bits) - 1
    scales = _stored(high - low, float(levels), 0.0, spec)
    return Scales(scales, (-low / scales.float()).round_().clamp_(0, levels).to(torch.uint8))


def as_stored(scales: Tensor, spec: WeightSpec) -> Tensor:
    """Positive scales in the type that `spec` stores, rounded to nearest; scales of that type stay as they are.

    E8M0: the nearest power of two, the upper one from the middle on. What is too large becomes infinite or NaN, what is
    too small zero (E8M0: 2**-127).
    """
    dtype = spec.torch_scale_dtype
    if scales.dtype == dtype:
        return scales
    if spec.scale_dtype == "e8m0":
        return scales.float().to(torch.float8_e8m0fnu).view(torch.uint8)
    if spec.scale_dtype == "e4m3":  # whether torch's cast saturates depends on its version
        scales = scales.float().masked_fill(scales.float() > _BEYOND_E4M3, torch.nan)
    return scales.to(dtype)


def _symmetric_scales(extent: Tensor, spec: WeightSpec) -> Scales:
    """Stored scales of blocks whose largest magnitudes are `extent`, in the scales' shape."""
    fmt = spec.number_format
    if spec.scale_dtype == "e8m0":
        return Scales(_shared_exponents(extent, fmt), None)
    if not spec.has_global_scale:
        return Scales(_stored(extent, fmt.max_value, _slack(fmt), spec), None)
    amax = extent.max().reshape(1)
    whole = (amax / (_LARGEST_E4M3 * fmt.max_value)).clamp_min(torch.finfo(torch.float32).tiny)
    whole = torch.where(amax == 0, torch.ones_like(amax), whole)
    return Scales(_stored(extent, fmt.max_value, _slack(fmt), spec, whole), None, whole)


def _slack(fmt: Format) -> float:
    """How far beyond the largest value, in units of the scale, rounding to it still costs no more than half a step."""
    if fmt.values is None:
        return 0.5
    *_, below, largest = sorted(set(fmt.values))
    return min(0.5, (largest - below) / 2)


def _shared_exponents(extent: Tensor, fmt: Format) -> Tensor:
    """Stored E8M0 scales: the exponents of `extent` less the largest exponent of an element."""
    _, exponent = torch.frexp(extent)  # extent = m * 2**exponent with m in [1/2, 1)
    _, largest = math.frexp(fmt.max_value)
    return torch.where(extent == 0, 0, exponent - largest).clamp(-_BIAS, _BIAS).add(_BIAS).to(torch.uint8)


def _stored(extent: Tensor, steps: float, slack: float, spec: WeightSpec, global_scale: Tensor | None = None) -> Tensor:
    """Smallest stored scales whose `steps + slack` steps reach `extent` where `extent / steps` rounds below that."""
    exact = extent / steps if global_scale is None else extent / steps / global_scale
    exact = exact.clamp_min(torch.finfo(torch.float32).tiny)
    scales = as_stored(torch.where(extent == 0, torch.ones_like(exact), exact), spec)
    if spec.scale_dtype in _BITS:
        short = scale_values(scales, global_scale) * (steps + slack) < extent
        bits = scales.view(_BITS[spec.scale_dtype])
        scales = torch.where(short, bits + 1, bits).view(scales.dtype)  # the next number: scales are not negative
    if not bool(torch.isfinite(scales.float()).all()):
        raise FormatError(f"scales up to {float(exact.max()):g} overflow {spec.scale_dtype}", hint="use float32 scales")
    return scales


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or 0 in shape:
        raise FormatError(f"a weight of shape {list(shape)} cannot be quantized", hint="two axes or more, none empty")
    return shape[0], math.prod(shape[1:])
