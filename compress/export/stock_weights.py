"""Packed weights as the tensors that stock operators take: integers, or codes in MatMulNBits' blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats import get_format
from compress.formats.layout import from_blocks, pack_codes, unpack_codes
from compress.formats.scales import scale_values

BLOCKS: Final = (16, 32, 64, 128)
"""Block sizes used with MatMulNBits; larger groups repeat their scale."""
_CONTAINERS = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
_LARGEST_SHIFT = 4  # tables are tried in units of 1, 1/2, … 1/16


@dataclass(frozen=True)
class IntegerWeight:
    """A weight `(codes - zeros) * scales` with integer codes.

    Attributes:
        codes: uint8 `[n, k]`.
        zeros: int16, scales: float32; both broadcast against `[n, groups]`.
        bits: bits of a code.
        group: positions that share scale and zero point; k when channels or the whole tensor share them.
        symmetric: every zero point is the middle of the code range.
    """

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    bits: int
    group: int
    symmetric: bool

    @property
    def n(self) -> int:
        """Output channels."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Contracted positions."""
        return self.codes.shape[1]

    @property
    def container_bits(self) -> int:
        """Bits of a code in MatMulNBits: 2, 4 or 8."""
        return _CONTAINERS[self.bits]

    def signed(self) -> NDArray[np.int8]:
        """Codes less the middle of their range, `[n, k]`."""
        return (self.codes.to(torch.int16) - (1 << self.bits - 1)).to(torch.int8).numpy()

    def signed_zeros(self) -> NDArray[np.int8]:
        """Zero points less the middle of the code range, so that `signed` less these, scaled, is the weight."""
        return (self.zeros - (1 << self.bits - 1)).to(torch.int8).numpy()


def read_weight(
    tensors: Mapping[str, Tensor], *, bits: int, block_size: int, k: int, grouped: bool
) -> IntegerWeight | None:
    """The weight of an operator call from its inputs by name; None when its table holds no small whole numbers.

    A table whose entries, times a power of two, are integers becomes 8-bit codes: FP4 is exact in units of 1/2.
    """
    codes = from_blocks(unpack_codes(tensors["codes"], bits, block_size), k).contiguous()
    scales = scale_values(tensors["scales"], tensors.get("global_scale"))
    zeros = tensors.get("zero_points")
    group = block_size if grouped else k
    if "table" in tensors:
        found = _integer_table(tensors["table"].float())
        if found is None:
            return None
        values, unit = found
        codes, scales, bits = (values[codes.long()] + 128).to(torch.uint8), scales * unit, 8
    middle = torch.full((1, 1), 1 << bits - 1, dtype=torch.int16)
    return IntegerWeight(
        codes, middle if zeros is None else zeros.to(torch.int16), scales, bits, group, symmetric=zeros is None
    )


def _integer_table(table: Tensor) -> tuple[Tensor, float] | None:
    """Entries as integers of 8 bits, and the unit they count."""
    for shift in range(_LARGEST_SHIFT + 1):
        values = table * (1 << shift)
        if bool((values.abs() <= 127).all()) and torch.equal(values, values.round()):
            return values.to(torch.int16), 1.0 / (1 << shift)
    return None


def block_of(weight: IntegerWeight) -> int | None:
    """Block size for MatMulNBits: the largest of `BLOCKS` that divides the group; None when none does.

    A row that is one group may end within a block, so it takes the largest block that is not longer than need be.
    """
    if weight.group >= weight.k:
        return next((block for block in BLOCKS if block >= weight.k), BLOCKS[-1])
    return divisor_of(weight.group)


def divisor_of(group: int) -> int | None:
    """The largest of `BLOCKS` that divides the group; None when none does."""
    return max((block for block in BLOCKS if group % block == 0), default=None)


def matmul_nbits(weight: IntegerWeight, block: int) -> dict[str, NDArray[Any]]:
    """Inputs of MatMulNBits by the names that our operator has for them.

    codes uint8 `[n, blocks, bytes]`, scales float32 `[n, blocks]`, zero_points uint8, packed by row, if there are any.
    """
    bits, blocks = weight.container_bits, -(-weight.k // block)
    codes = weight.codes
    if weight.symmetric:  # the middle of the wider range is MatMulNBits' own zero point
        codes = codes + ((1 << bits - 1) - (1 << weight.bits - 1))
    codes = torch.nn.functional.pad(codes, (0, blocks * block - weight.k))
    found = {
        "codes": pack_codes(codes.reshape(weight.n, blocks, block), bits).numpy(),
        "scales": _by_block(weight.scales, weight, block).numpy(),
    }
    if not weight.symmetric:
        zeros = _by_block(weight.zeros, weight, block).to(torch.uint8)
        found["zero_points"] = pack_codes(zeros, bits).numpy()
    return found


def is_nf4(table: Tensor | None) -> bool:
    """Whether a table holds the 16 values of NF4, in their order."""
    return table is not None and table.tolist() == list(get_format("nf4").values or ())


def matmul_bnb4(tensors: Mapping[str, Tensor], block_size: int, k: int, block: int) -> dict[str, NDArray[Any]]:
    """Inputs of MatMulBnb4, which takes codes row after row, the first of two in the high nibble.

    codes uint8 `[n * k / 2]`, scales float32 `[n * k / block]`; `block` divides k, and the group that shares a scale.
    """
    codes = from_blocks(unpack_codes(tensors["codes"], 4, block_size), k)
    pairs = codes.reshape(-1, 2)
    scales = scale_values(tensors["scales"], tensors.get("global_scale"))
    repeated = scales.expand(len(codes), -1)
    if scales.shape[1] > 1:
        repeated = repeated[:, torch.arange(k // block) * block // block_size]
    else:
        repeated = repeated.expand(-1, k // block)
    return {"codes": (pairs[:, 0] << 4 | pairs[:, 1]).numpy(), "scales": repeated.reshape(-1).numpy()}


def _by_block(values: Tensor, weight: IntegerWeight, block: int) -> Tensor:
    """Values of groups, repeated for the blocks of each group: `[n, blocks]`."""
    groups = -(-weight.k // weight.group)
    index = torch.arange(-(-weight.k // block)) * block // weight.group
    return values.expand(weight.n, groups)[:, index].contiguous()
