"""What a weight is stored as (`WeightSpec`), its scales and zero points, and how many bytes that takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.formats.codebook import Format, get_format
from compress.formats.layout import packed_bytes, to_blocks

Granularity = Literal["tensor", "channel", "group"]
ScaleDtype = Literal["float32", "float16"]
_SCALE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class WeightSpec:
    """How a weight is stored: number format, which positions share a scale, zero points or not, scale type.

    `group` positions along the flattened input axis share a scale, when granularity is `group`. Zero points
    (`symmetric=False`) exist for signed integer formats only. Raises FormatError when the fields do not go together.
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
            raise FormatError(f"scale_dtype {self.scale_dtype!r} is not float32 or float16")

    @property
    def number_format(self) -> Format:
        """The format object."""
        return get_format(self.format)

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """The type scales are stored in."""
        return _SCALE_DTYPES[self.scale_dtype]

    def block_size(self, k: int) -> int:
        """Positions that are packed together, and share a scale under `group`: k unless `group` is smaller."""
        return k if self.group is None else min(self.group, k)


class Scales(NamedTuple):
    """Scales (`scale_dtype`) and zero points (uint8, None when symmetric), broadcasting against [n, k_blocks]."""

    scales: Tensor
    zero_points: Tensor | None


class ByteCount(NamedTuple):
    """Stored bytes by part."""

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
    count = prod(scale_shape(shape, spec))
    return ByteCount(
        prod(code_shape(shape, spec)), count * spec.torch_scale_dtype.itemsize, 0 if spec.symmetric else count
    )


def weight_scales(weight: Tensor, spec: WeightSpec) -> Scales:
    """Scales from the extremes of each block of a weight `[n, ...]`, as they will be stored.

    Symmetric: `amax / max_value`. Asymmetric: `(max - min) / (2**bits - 1)` over a range widened to contain 0,
    zero point `round(-min / scale)`. Blocks of zeros get scale 1. Rounding to `scale_dtype` happens here, so that codes
    are chosen for the stored scale; it goes up where rounding to nearest would clip the extremes by over half a step.
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
        fmt = spec.number_format
        return Scales(_stored(torch.maximum(high, -low), fmt.max_value, 0.5, spec), None)
    levels = (1 << spec.number_format.bits) - 1
    scales = _stored(high - low, float(levels), 0.0, spec)
    return Scales(scales, (-low / scales.float()).round_().clamp_(0, levels).to(torch.uint8))


def _stored(extent: Tensor, steps: float, slack: float, spec: WeightSpec) -> Tensor:
    """Smallest stored scales whose `steps + slack` steps reach `extent` where `extent / steps` rounds below that."""
    exact = (extent / steps).clamp_min(torch.finfo(torch.float32).tiny)
    scales = torch.where(extent == 0, torch.ones_like(exact), exact).to(spec.torch_scale_dtype)
    if spec.scale_dtype == "float16":
        short = scales.float() * (steps + slack) < extent
        above = (scales.view(torch.int16) + 1).view(torch.float16)  # the next number: scales are not negative
        scales = torch.where(short, above, scales)
    if not bool(torch.isfinite(scales).all()):
        raise FormatError(f"scales up to {float(exact.max()):g} overflow {spec.scale_dtype}", hint="use float32 scales")
    return scales


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or 0 in shape:
        raise FormatError(f"a weight of shape {list(shape)} cannot be quantized", hint="two axes or more, none empty")
    return shape[0], prod(shape[1:])
