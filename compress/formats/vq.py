"""Vector-quantized weights: one code for `d` neighbouring inputs of an output channel, from a codebook per layer.

A weight `[n, …]`, read as rows `[n, k]`, is cut into sub-vectors of d positions, k padded up to a multiple of d. The
codes of one output channel are one bit stream, packed as `layout.pack_codes` packs a block; the weight is
`codebook[code] * scale`. Sub-vectors along the input axis: VQ4DiT, arXiv 2408.17131.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.formats.layout import pack_codes, packed_bytes, unpack_codes

CodebookDtype = Literal["float32", "float16", "int8"]
_CODEBOOK_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_SCALE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class VqSpec:
    """How a vector-quantized weight is stored.

    Attributes:
        bits: bits of a code, 1 to 8: the codebook has `2**bits` codewords.
        d: weights that one code stands for.
        codebook_dtype: type of the codewords.
        granularity: `tensor` (one scale) or `channel` (one for each output channel).
        scale_dtype: type of the scales.

    Raises FormatError when a field is out of range.
    """

    bits: int = 8
    d: int = 4
    codebook_dtype: CodebookDtype = "float16"
    granularity: Literal["tensor", "channel"] = "tensor"
    scale_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.d < 1:
            raise FormatError(f"bits={self.bits}, d={self.d}: codes of 1 to 8 bits for at least one weight")
        if self.codebook_dtype not in _CODEBOOK_DTYPES:
            raise FormatError(f"codebook_dtype {self.codebook_dtype!r} is not one of {', '.join(_CODEBOOK_DTYPES)}")
        if self.granularity not in ("tensor", "channel"):
            raise FormatError(f"granularity {self.granularity!r} is not tensor or channel")
        if self.scale_dtype not in _SCALE_DTYPES:
            raise FormatError(f"scale_dtype {self.scale_dtype!r} is not float32 or float16")

    @property
    def codewords(self) -> int:
        """Entries of the codebook."""
        return 1 << self.bits


class VqShape(NamedTuple):
    """Shapes of the stored tensors of a weight."""

    codes: tuple[int, int]
    codebook: tuple[int, int]
    scales: tuple[int, int]


class VqByteCount(NamedTuple):
    """Stored bytes by part."""

    codes: int
    codebook: int
    scales: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(self)


def vq_shape(shape: tuple[int, ...], spec: VqSpec) -> VqShape:
    """Shapes of codes, codebook and scales of a weight of logical `shape` `[n, …]`."""
    if len(shape) < 2 or 0 in shape:
        raise FormatError(f"a weight of shape {list(shape)} cannot be quantized", hint="two axes or more, none empty")
    n, k = shape[0], prod(shape[1:])
    codes = (n, packed_bytes(vector_count(k, spec.d), spec.bits))
    return VqShape(codes, (spec.codewords, spec.d), (n if spec.granularity == "channel" else 1, 1))


def vq_predicted_bytes(shape: tuple[int, ...], spec: VqSpec) -> VqByteCount:
    """Bytes that a weight of that shape takes, exactly, without its values.

    Bits per weight: `bits / d` for the codes where they fill whole bytes, and the codebook's `2**bits * d` codeword
    entries (and the scales) spread over all weights.
    """
    shapes = vq_shape(shape, spec)
    return VqByteCount(
        prod(shapes.codes),
        prod(shapes.codebook) * _CODEBOOK_DTYPES[spec.codebook_dtype].itemsize,
        prod(shapes.scales) * _SCALE_DTYPES[spec.scale_dtype].itemsize,
    )


def vector_count(k: int, d: int) -> int:
    """Sub-vectors of a row of k weights; the last one may be padded."""
    return -(-k // d)


def pack_vq(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes, uint8 `[n, ceil(vectors * bits / 8)]`, of codes, uint8 `[n, vectors]`; unused last bits are 0.

    Raises FormatError when the codes are not uint8 `[n, vectors]`, or one needs more than `bits` bits.
    """
    if codes.dim() != 2:
        raise FormatError(f"codes are {list(codes.shape)}, not [outputs, sub-vectors]")
    return pack_codes(codes, bits)


def unpack_vq(packed: Tensor, bits: int, d: int, k: int) -> Tensor:
    """The codes, uint8 `[n, ceil(k / d)]`, of packed bytes: the inverse of `pack_vq`."""
    return unpack_codes(packed, bits, vector_count(k, d))


def decode_vq(packed: Tensor, codebook: Tensor, scales: Tensor, k: int) -> Tensor:
    """The float32 weight `[n, k]`: `codebook[code] * scale`.

    `packed` is uint8 `[n, bytes]`, `codebook` `[2**bits, d]` of any number type; `scales` broadcast against `[n, 1]`.
    """
    codewords, d = codebook.shape
    codes = unpack_vq(packed, codewords.bit_length() - 1, d, k)
    vectors = codebook.float().index_select(0, codes.reshape(-1).int())
    return vectors.reshape(codes.shape[0], -1)[:, :k] * scales.float()
