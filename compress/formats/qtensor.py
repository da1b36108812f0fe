"""Quantized weights: codes, scales and zero points, and the one decoding that files, kernels and tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.formats.codebook import look_up, nearest_codes
from compress.formats.layout import from_blocks, pack_codes, to_blocks, unpack_codes
from compress.formats.scales import (
    Scales,
    WeightSpec,
    as_stored,
    code_shape,
    scale_shape,
    scale_values,
    weight_scales,
)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized weight as it is stored; the layout is the operators' (`compress/kernels/schema.py`).

    Attributes:
        codes: packed uint8 `[n, k_blocks, block_bytes]`.
        scales: `[1, 1]`, `[n, 1]` or `[n, k_blocks]`, in `spec.scale_dtype`.
        zero_points: uint8 of the same shape, or None when symmetric.
        shape: the weight's logical shape `[n, ...]`.
        spec: how it is stored. The code table of float formats comes from `spec.number_format`.
        global_scale: float32 `[1]` that multiplies all scales, or None when the format has none.

    Raises FormatError when the tensors are not what `shape` and `spec` say.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    shape: tuple[int, ...]
    spec: WeightSpec
    global_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != code_shape(self.shape, self.spec):
            raise FormatError(
                f"codes are {self.codes.dtype} {list(self.codes.shape)}, "
                f"a {self.spec.format} weight {list(self.shape)} needs uint8 {list(code_shape(self.shape, self.spec))}"
            )
        _check_scales(self.all_scales, self.shape, self.spec)

    @property
    def all_scales(self) -> Scales:
        """Scales, zero points and global scale together."""
        return Scales(self.scales, self.zero_points, self.global_scale)

    def dequantize(self) -> Tensor:
        """The weight the operators multiply with, float32 of the logical shape, bit for bit."""
        table = self.spec.number_format.table()
        blocks = decode_packed(
            self.codes,
            self.all_scales,
            None if table is None else table.to(self.codes.device),
            bits=self.spec.number_format.bits,
            block_size=self.spec.block_size(self._k),
        )
        return from_blocks(blocks, self._k).reshape(self.shape)

    def bytes(self) -> int:
        """Stored bytes: codes, scales, zero points and global scale."""
        parts = (self.codes, *self.all_scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def _k(self) -> int:
        return torch.Size(self.shape[1:]).numel()


def quantize_weight(
    weight: Tensor,
    spec: WeightSpec,
    scales: Tensor | None = None,
    zero_points: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> QTensor:
    """The weight `[n, ...]`, flattened to `[n, k]`, rounded to the nearest values of the format.

    `scales` and `zero_points` (an observer's or a method's choice) must have the shapes `scale_shape` gives and are
    rounded to their stored types before coding; without them `weight_scales` chooses. `global_scale` goes with scales
    of a format that has one.
    Raises FormatError for weights or scales that are not finite, scales that are not positive, or wrong shapes.
    """
    if scales is None and zero_points is None:
        given = weight_scales(weight, spec)
    elif scales is None:
        raise FormatError("zero points without scales", hint="give both, or neither")
    else:
        given = stored_scales(scales, zero_points, tuple(weight.shape), spec, global_scale)
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    if not bool(torch.isfinite(rows).all()):
        raise FormatError("the weight has values that are not finite")
    codes = encode(rows, given.scales, given.zero_points, spec, given.global_scale)
    return pack_weight(codes, given, tuple(weight.shape), spec)


def stored_scales(
    scales: Tensor,
    zero_points: Tensor | None,
    shape: tuple[int, ...],
    spec: WeightSpec,
    global_scale: Tensor | None = None,
) -> Scales:
    """Scales and zero points of any number type as they are stored for a weight of that shape, checked.

    Whole numbers of type uint8 are E8M0 exponents where `spec` stores such.
    """
    kept = as_stored(scales.detach(), spec)
    asked = scale_values(kept) if scales.dtype == kept.dtype else scales  # a stored exponent of 0 is no zero
    if not bool((torch.isfinite(scale_values(kept)) & (scale_values(kept) > 0) & (asked > 0)).all()):
        raise FormatError(f"scales must be positive and finite as {spec.scale_dtype}")
    if zero_points is not None and zero_points.dtype != torch.uint8:
        levels = (1 << spec.number_format.bits) - 1
        if bool(((zero_points != zero_points.round()) | (zero_points < 0) | (zero_points > levels)).any()):
            raise FormatError(f"zero points of {spec.format} must be whole numbers from 0 to {levels}")
        zero_points = zero_points.detach().to(torch.uint8)
    given = Scales(kept, zero_points, None if global_scale is None else global_scale.detach().float())
    _check_scales(given, shape, spec)
    if given.global_scale is not None and not 0 < float(given.global_scale) < float("inf"):
        raise FormatError("the global scale must be positive and finite")
    return given


def pack_weight(codes: Tensor, scales: Scales, shape: tuple[int, ...], spec: WeightSpec) -> QTensor:
    """The quantized weight of codes, uint8 `[n, k]`, that a rounding method chose for those (stored) scales."""
    blocks = to_blocks(codes, spec.block_size(codes.shape[-1]))
    packed = pack_codes(blocks, spec.number_format.bits)
    return QTensor(packed, scales.scales.contiguous(), scales.zero_points, shape, spec, scales.global_scale)


def encode(
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    spec: WeightSpec,
    global_scale: Tensor | None = None,
) -> Tensor:
    """Nearest codes, uint8 `[n, k]`, of a float weight `[n, k]` under given scales; half steps go to the even value.

    Integers: `clamp(round(w / scale) + z, 0, 2**bits - 1)`, z = `2**(bits - 1)` without zero points.
    Float formats: the nearest table entry of `w / scale`, saturating.
    """
    k = weight.shape[-1]
    fmt = spec.number_format
    steps = scale_values(scales, global_scale)[..., None]
    ratio = to_blocks(weight.float(), spec.block_size(k)) / steps  # n k_blocks block
    if fmt.kind == "float":
        return from_blocks(nearest_codes(ratio, fmt), k)
    zero = _zero(zero_points, fmt.bits)
    codes = ratio.round_().add_(zero).clamp_(0, (1 << fmt.bits) - 1)
    return from_blocks(codes.to(torch.uint8), k)


def decode(
    codes: Tensor, scales: Tensor, zero_points: Tensor | None, spec: WeightSpec, global_scale: Tensor | None = None
) -> Tensor:
    """The float32 weight `[n, k]` that codes, uint8 `[n, k]`, stand for."""
    k = codes.shape[-1]
    table = spec.number_format.table()
    values = code_values(
        to_blocks(codes, spec.block_size(k)),
        zero_points,
        None if table is None else table.to(codes.device),
        spec.number_format.bits,
    )
    return from_blocks(values * scale_values(scales, global_scale)[..., None], k)


def decode_packed(codes: Tensor, scales: Scales, table: Tensor | None, *, bits: int, block_size: int) -> Tensor:
    """Float32 weight blocks `[n, k_blocks, block_size]` of packed codes; values in the padding mean nothing."""
    values = code_values(unpack_codes(codes, bits, block_size), scales.zero_points, table, bits)
    return values.mul_(scales.values()[..., None])


def code_values(codes: Tensor, zero_points: Tensor | None, table: Tensor | None, bits: int) -> Tensor:
    """Float32 values before scaling, in new memory, of codes `[n, k_blocks, block]`: `u - z`, or `table[u]`."""
    if table is not None:
        return look_up(table.float(), codes)
    return codes.float() - _zero(zero_points, bits)


def _zero(zero_points: Tensor | None, bits: int) -> Tensor | float:
    return float(1 << bits - 1) if zero_points is None else zero_points.float()[..., None]


def _check_scales(given: Scales, shape: tuple[int, ...], spec: WeightSpec) -> None:
    need = scale_shape(shape, spec)
    if tuple(given.scales.shape) != need or given.scales.dtype != spec.torch_scale_dtype:
        got = f"{given.scales.dtype} {list(given.scales.shape)}"
        raise FormatError(f"scales are {got}, not {spec.scale_dtype} {list(need)} ({spec.granularity} granularity)")
    if (given.zero_points is None) != spec.symmetric:
        found = "without" if given.zero_points is None else "with"
        raise FormatError(f"symmetric={spec.symmetric} {found} zero points")
    if (given.global_scale is not None) != spec.has_global_scale:
        found = "without its" if given.global_scale is None else "with a"
        raise FormatError(f"{spec.format} {found} global scale")
    if given.global_scale is not None and tuple(given.global_scale.shape) != (1,):
        raise FormatError(f"the global scale is {list(given.global_scale.shape)}, not [1]")
    if given.zero_points is not None and tuple(given.zero_points.shape) != need:
        raise FormatError(f"zero points are {list(given.zero_points.shape)}, not {list(need)}")
