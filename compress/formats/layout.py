"""Byte layouts: codes of 1 to 8 bits packed as one bit stream per block, least significant bits first.

Code i of a block occupies bits `i*bits .. i*bits + bits - 1` of the block's bytes read as one little-endian number.
4 bits put the first code in the low nibble (onnxruntime's MatMulNBits); 8 codes of 3 bits fill 3 bytes.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import FormatError


class _Word(NamedTuple):
    """The smallest whole number of bytes that holds a whole number of codes."""

    codes: int
    bytes: int
    dtype: torch.dtype


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes, uint8 `[..., ceil(block*bits/8)]`, of codes, uint8 `[..., block]`; unused last bits are 0.

    Raises FormatError when the codes are not uint8, or one needs more than `bits` bits.
    """
    word = _word(bits)
    if codes.dtype != torch.uint8:
        raise FormatError(f"codes are {codes.dtype}, not torch.uint8")
    if bits < 8 and codes.numel() and int(codes.max()) >> bits:
        raise FormatError(f"code {int(codes.max())} does not fit in {bits} bits")
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    count = codes.shape[-1]
    groups = to_blocks(codes, word.codes)  # ... words codes
    words = torch.zeros(groups.shape[:-1], dtype=word.dtype, device=codes.device)
    for i in range(word.codes):
        words |= groups[..., i].to(word.dtype) << i * bits
    out = torch.stack([(words >> 8 * i & 0xFF).to(torch.uint8) for i in range(word.bytes)], -1)
    return out.flatten(-2)[..., : packed_bytes(count, bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each block, uint8 `[..., count]` in new memory: the inverse of `pack_codes`."""
    word = _word(bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_bytes(count, bits):
        need = f"uint8 [..., {packed_bytes(count, bits)}]"
        raise FormatError(f"{count} codes of {bits} bits are {need}, not {packed.dtype} {list(packed.shape)}")
    if bits == 8:
        return packed.clone(memory_format=torch.contiguous_format)
    groups = to_blocks(packed, word.bytes)  # ... words bytes
    words = groups[..., 0].to(word.dtype)
    for i in range(1, word.bytes):
        words = words | groups[..., i].to(word.dtype) << 8 * i
    out = torch.empty((*words.shape, word.codes), dtype=torch.uint8, device=packed.device)
    for i in range(word.codes):
        out[..., i] = words >> i * bits & (1 << bits) - 1
    return out.flatten(-2)[..., :count].contiguous()


def to_blocks(rows: Tensor, block: int) -> Tensor:
    """`[..., k]` as `[..., ceil(k/block), block]`, the last block padded with zeros."""
    missing = -rows.shape[-1] % block
    padded = F.pad(rows, (0, missing)) if missing else rows
    return padded.reshape(*rows.shape[:-1], padded.shape[-1] // block, block)


def from_blocks(blocks: Tensor, k: int) -> Tensor:
    """`[..., k_blocks, block]` as `[..., k]` without the padding."""
    return blocks.flatten(-2)[..., :k]


def _word(bits: int) -> _Word:
    if not 1 <= bits <= 8:
        raise FormatError(f"codes have 1 to 8 bits, not {bits}")
    codes = 8 // gcd(8, bits)
    width = codes * bits
    return _Word(codes, width // 8, torch.uint8 if width == 8 else torch.int32 if width <= 24 else torch.int64)
