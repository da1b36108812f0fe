"""`qmatmul` by integer matmuls in plain PyTorch, for CPUs: int8 codes of both operands, exact int32 sums, float scales.

With activation codes a (offset o from their values) and panel bytes p (offset q), the sum over one segment

    sum (a + o)(p - q) = sum a p + o (sum p - q length) - q sum a

is computed in int32 without rounding, converted to float32 once, and multiplied by the segment's weight scale (and the
row's activation scale). A segment is the whole row when scales are per channel, else a block. Results therefore do not
depend on where in a batch a row is. Rows go in tiles that stay in cache. The panel is expanded from the packed codes in
each call; the reference's expansion to float costs more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.formats import dynamic_scale, get_format, integer_codes, scale_values
from compress.formats.codebook import look_up
from compress.formats.layout import from_blocks, to_blocks, unpack_codes
from compress.formats.qtensor import code_values
from compress.kernels.call import Facts, MatmulCall
from compress.kernels.folding import fold, largest_value, round_table, whole_factor
from compress.kernels.reference import finished, smoothed

SMALLEST_SEGMENT = 32  # measured: below it, converting sums to float costs more than the float matmul saves
LARGEST_SEGMENT = 32768  # 255 * 255 * 32768 fits in int32
_TILE = 1 << 18  # sums in one tile: 1 MiB of int32


def refusal(op_name: str, facts: Facts) -> str:
    """Why this backend does not take the layer; empty when it does."""
    if op_name != "qmatmul":
        return f"{op_name} has no integer path in PyTorch"
    if facts.device != "cpu":
        return f"runs on the CPU only, not on {facts.device}"
    if facts.act_format == "none":
        return "activations are floating point"
    if get_format(facts.act_format).kind != "int":
        return f"{facts.act_format} activations are not integers"
    if facts.table and not (facts.folds or facts.table_is_whole):
        return "the weight's code table does not hold whole numbers"
    return _segment_refusal(facts) or ("" if int_mm_is_exact() else "torch._int_mm is not exact on this machine")


def _segment_refusal(facts: Facts) -> str:
    block, group = _extents(facts)
    segment, larger = sorted((block, group))
    if larger < facts.k and larger % segment:
        return f"weight blocks of {block} and activation groups of {group} do not nest"
    if segment < min(SMALLEST_SEGMENT, facts.k):
        return f"scales change every {segment} positions, the floating-point matmul is faster below {SMALLEST_SEGMENT}"
    if segment > LARGEST_SEGMENT:
        return f"sums over {segment} positions could overflow 32 bits"
    return ""


def _extents(facts: Facts) -> tuple[int, int]:
    """Positions that share a weight scale, and an activation scale."""
    whole = facts.scale_blocks == 1 or facts.folds_blocks
    block = facts.k if whole else min(facts.block_size, facts.k)
    return block, min(facts.act_group or facts.k, facts.k)


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether `torch._int_mm` adds extreme products without saturating (CPUs without VNNI may not); probed once."""
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    a = extremes[torch.arange(33 * 64).reshape(33, 64) // 3 % 2]
    b = extremes[torch.arange(64 * 16).reshape(64, 16) // 5 % 2]
    try:
        return torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double())
    except RuntimeError:
        return False


@dataclass(frozen=True)
class _Segment:
    """Input positions `start:stop` that share their scales, and the weight's part of their sums."""

    start: int
    stop: int
    group: int  # which activation scale
    panel: Tensor  # int8 [positions, n]
    scale: Tensor  # float32 [n] or [1]
    offset: Tensor | None  # q: int32 [n] or [1]
    total: Tensor | None  # sum p - q length: int32 [n]; only where activations have an offset


@dataclass(frozen=True)
class _Rows:
    """Quantized activations of some rows: int8 codes, scales [rows, groups], offsets int32 [rows, 1]."""

    codes: Tensor
    scales: Tensor
    offset: Tensor | None


def matmul(call: MatmulCall) -> Tensor:
    """`qmatmul` of a call that `refusal` does not object to; the reference up to the order of float additions."""
    call.check()
    x = smoothed(call).reshape(-1, call.k)
    segments, rest = _weight(call)
    y = torch.empty((x.shape[0], call.n), dtype=torch.float32)
    step = min(max(_TILE // call.n, 64), 2048)
    for start in range(0, x.shape[0], step):
        tile = slice(start, start + step)
        rows = _quantize(x[tile], call, tile)
        _multiply(rows, segments, call.act_group, y[tile])
        if rest is not None:
            _add_rest(rows, rest, call.act_group, y[tile])
        if call.bias is not None:
            y[tile].add_(call.bias.float())
    if call.low_rank_a is not None and call.low_rank_b is not None:
        y += x @ call.low_rank_a.float() @ call.low_rank_b.float()
    return finished(y.reshape(call.output_shape), call)


def _quantize(x: Tensor, call: MatmulCall, tile: slice) -> _Rows:
    fmt = get_format(call.act_format)
    group = call.act_group or call.k
    blocks = to_blocks(x, group)  # rows groups positions
    zero = _by_row(call.act_zero_point, call, tile)
    scales = _by_row(call.act_scale, call, tile)
    if scales is None:
        scales = dynamic_scale(blocks, fmt, (-1,))[..., 0]
    codes = integer_codes(blocks, fmt, scales[..., None], None if zero is None else zero[..., None])
    shift = 128 if fmt.code_range[1] > 127 else 0
    offset = None
    if zero is not None or shift:
        offset = (shift - (torch.zeros_like(scales) if zero is None else zero)).to(torch.int32)
    return _Rows(codes.sub_(shift).to(torch.int8).flatten(1)[:, : call.k], scales, offset)


def _by_row(value: Tensor | None, call: MatmulCall, tile: slice) -> Tensor | None:
    """A static scale or zero point spread over the rows of a tile: float32 [rows, groups]."""
    if value is None:
        return None
    shape = call.act_scale_shape
    return value.float().expand(shape).reshape(-1, shape[-1])[tile]


def _multiply(rows: _Rows, segments: list[_Segment], act_group: int, out: Tensor) -> None:
    """Writes the products without bias to `out` [rows, n]."""
    for i, segment in enumerate(segments):
        a = rows.codes[:, segment.start : segment.stop]
        sums = int_product(a, segment.panel)
        if segment.offset is not None:
            sums -= a.sum(1, keepdim=True, dtype=torch.int32) * segment.offset
        if rows.offset is not None and segment.total is not None:
            column = segment.group if act_group else 0
            sums += rows.offset[:, column : column + 1] * segment.total
        part = sums.float().mul_(segment.scale)
        if act_group:
            part.mul_(rows.scales[:, segment.group : segment.group + 1])
        if i:
            out.add_(part)
        else:
            out.copy_(part)
    if not act_group:
        out.mul_(rows.scales)


def _add_rest(rows: _Rows, rest: Tensor, act_group: int, out: Tensor) -> None:
    """Adds the floating-point product with the weights that were not folded, for the output channels that have any."""
    channels = rest.count_nonzero(1).nonzero()[:, 0]
    if not len(channels):
        return
    k = rest.shape[1]
    blocks = to_blocks(rows.codes.float(), act_group or k)
    if rows.offset is not None:
        blocks = blocks + rows.offset[..., None]
    x = from_blocks(blocks * rows.scales[..., None], k)
    out[:, channels] += F.linear(x, rest[channels])


def _weight(call: MatmulCall) -> tuple[list[_Segment], Tensor | None]:
    """The segments of the weight and, in folded mode, the float32 rest `[n, k]`."""
    codes = unpack_codes(call.codes, call.bits, call.block_size)
    scales = scale_values(call.scales, call.global_scale)
    if call.table is not None and call.rounds_table:
        table, unit = round_table(call.table.float())
        return _segments(call, from_blocks(look_up(table.to(torch.int8), codes), call.k), scales * unit, None), None
    if call.folds:
        values = code_values(codes, call.zero_points, call.table, call.bits)
        largest = largest_value(call.bits, call.zero_points is not None, call.table)
        folded = fold(values, scales, largest, call.bits)
        panel = from_blocks(folded.panel.to(torch.int8), call.k)
        rest = from_blocks(folded.rest, call.k) if bool(folded.exact.any()) else None
        return _segments(call, panel, folded.scale[:, 0], None), rest
    if call.table is not None:
        factor = whole_factor(call.table.tolist())
        assert factor is not None, "a table that the refusal lets through"
        panel = from_blocks(look_up((call.table * factor).to(torch.int8), codes), call.k)
        return _segments(call, panel, scales / factor, None), None
    half = 1 << call.bits - 1
    panel = from_blocks(codes.sub_(half).view(torch.int8), call.k)  # uint8 arithmetic wraps: u - half as int8
    zero = None if call.zero_points is None else call.zero_points.to(torch.int32) - half
    return _segments(call, panel, scales, zero), None


def _segments(call: MatmulCall, panel: Tensor, scales: Tensor, zero: Tensor | None) -> list[_Segment]:
    """Segments of an int8 panel [n, k] under scales and offsets broadcasting against [n, blocks]."""
    block, group = _extents(call.facts())
    length = min(block, group)
    unsigned = get_format(call.act_format).code_range[1] > 127
    shifted = unsigned or call.act_zero_point is not None
    segments = []
    for start in range(0, call.k, length):
        stop = min(start + length, call.k)
        part = panel[:, start:stop]
        offset = None if zero is None else _column(zero, start // block)
        total = part.sum(1, dtype=torch.int32) if shifted else None
        if total is not None and offset is not None:
            total = total - offset * (stop - start)
        scale = _column(scales, start // block)
        segments.append(_Segment(start, stop, start // group, part.t(), scale, offset, total))
    return segments


def _column(value: Tensor, block: int) -> Tensor:
    return value[:, block if value.shape[1] > 1 else 0].contiguous()


def int_product(a: Tensor, b: Tensor) -> Tensor:
    """Exact int32 product of int8 matrices; `torch._int_mm` (2.13, CPU) returns garbage for one contracted position."""
    if a.shape[1] == 1:
        return a.int() * b.int()
    return torch._int_mm(a, b)
