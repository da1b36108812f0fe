"""Folding of block scales into one scale per output channel: an int8 panel that one integer matmul can use.

Each block's ratio to its channel's largest scale goes into the codes' values, which are then rounded to int8. The
rounding adds error, small where the ratio is near 1; blocks whose ratio is below 1/4 stay exact. Of a weight whose code
table does not hold whole numbers (NF4) the table is rounded to int8 instead, and every block keeps its scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import FormatError

SMALLEST_RATIO = 0.25
MOST_BITS = 6
PANEL_MAX = 127.0
SMALLEST_LARGEST = 2.0**-100
"""What the largest value of a table or codebook counts as at least, so that one of zeros stays one."""


class Folded(NamedTuple):
    """A weight as panel and exact rest: `panel * scale + rest`, blocks of one being zero in the other.

    panel: whole numbers from -127 to 127 as float32, [n, k_blocks, block]. scale: float32 [n, 1, 1].
    rest: float32 [n, k_blocks, block]. exact: which blocks are in the rest, bool [n, k_blocks].
    """

    panel: Tensor
    scale: Tensor
    rest: Tensor
    exact: Tensor


def fold(values: Tensor, scales: Tensor, largest: float, bits: int) -> Folded:
    """Folds unscaled values `[n, k_blocks, block]` with float32 scales broadcasting against `[n, k_blocks]`.

    With c the channel's largest block scale, v_max the largest magnitude a value can have (`largest`) and r the
    block's `scale / c`, a block with r >= 1/4 becomes `round(v * (r * (127 / v_max)))`, half to even, in units of
    `c * v_max / 127`. Other blocks stay exact, also those whose scale is no such part of c (negative, NaN), so that a
    NaN reaches the weight. Blocks of scale c = 0 are zeros.

    Added error, per weight: at most `c * v_max / 254`, i.e. `v_max / (254 r)` of the block's own scale: for symmetric
    int4 (v_max 8) 3 % of a step at r = 1, 13 % at r = 1/4, beside the format's own half step. Other blocks: none.

    Raises FormatError above 6 bits: the panel has too few levels, the rounding would be as coarse as the format's own.
    """
    if bits > MOST_BITS:
        raise FormatError(f"weights of {bits} bits cannot be folded into an int8 panel", hint="use mode 'exact'")
    block_scales = scales.expand(values.shape[:2])
    channel = block_scales.amax(1, keepdim=True)  # n 1
    ratio = torch.where(block_scales == channel, 1.0, block_scales / channel)  # scales may all be 0
    exact = ~((ratio >= SMALLEST_RATIO) & (ratio <= 1.0))  # n k_blocks
    largest = max(largest, SMALLEST_LARGEST)
    panel = (values * (ratio * (PANEL_MAX / largest))[..., None]).round_()
    panel.masked_fill_(exact[..., None], 0.0)
    rest = values * torch.where(exact, block_scales, 0.0)[..., None]
    return Folded(panel, (channel * (largest / PANEL_MAX))[..., None], rest, exact)


def round_table(table: Tensor) -> tuple[Tensor, Tensor]:
    """A code table as whole numbers from -127 to 127, float32, and the unit they count (0-dimensional).

    Entries become `round(v * (127 / v_max))`, half to even, in units of `v_max / 127`. Added error, per weight: at most
    `v_max / 254` of its block's scale; for NF4 at most 5 % of the smallest step between its values. v_max counts as at
    least 2**-100.
    """
    largest = table.abs().max().clamp_min(SMALLEST_LARGEST)
    return (table * (PANEL_MAX / float(largest))).round_(), largest / PANEL_MAX


def whole_factor(values: Sequence[float]) -> float | None:
    """The largest power of two that makes a code table whole numbers from -127 to 127; None when none does."""
    largest = max(map(abs, values))
    if not 0 < largest < math.inf:
        return None
    factor = 2.0 ** math.floor(math.log2(PANEL_MAX / largest))
    return factor if all((value * factor).is_integer() for value in values) else None


def largest_value(bits: int, zero_points: bool, table: Tensor | None) -> float:
    """The largest magnitude a code can stand for before scaling: v_max of `fold`."""
    if table is not None:
        return float(table.abs().max())
    return float((1 << bits) - 1) if zero_points else float(1 << bits - 1)
