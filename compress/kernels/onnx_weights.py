"""Decoding of packed weights in standard ONNX operators, for the bodies of the model-local functions.

Orders. `kn` is `[k, n]`, what MatMul and MatMulInteger take: codes are transposed while packed, so that every later
step runs over contiguous output channels. `nk` is `[n, k]`, what convolutions take and what byte look-ups produce.
Between unpacking and the final flattening, codes have the shape `[k_blocks, *positions, n]` or `[n, k_blocks,
*positions]` with one or two position axes (bytes, codes of a byte), which scales meet by unsqueezing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

import numpy as np

from compress.kernels.folding import PANEL_MAX, SMALLEST_RATIO, largest_value
from compress.kernels.onnx_graph import Body

_SCALE_NAMES = {"uint8": "e8m0", "float8_e4m3fn": "e4m3"}

Order = Literal["kn", "nk"]
Folding = Literal["none", "blocks", "table"]


@dataclass(frozen=True)
class WeightForm:
    """What decoding depends on.

    Attributes:
        bits: bits of a code.
        scales: `tensor`, `channel` or `group`; zeros: the same for zero points, None without.
        table: code values come from a table.
        scale_type: element type of the scales; global_scale: a factor of all scales is given.
        folding: `blocks`: block scales are folded into an int8 panel; `table`: the table is rounded to int8.
        block: block size where a block's bytes hold more codes than the block, else 0.
        k: contracted length where the blocks together are longer, else 0.
    """

    bits: int
    scales: str
    zeros: str | None = None
    table: bool = False
    scale_type: str = "float32"
    global_scale: bool = False
    folding: Folding = "none"
    block: int = 0
    k: int = 0

    @property
    def overload_parts(self) -> list[str]:
        """What tells forms apart in the name of a function; that inputs are float16 is told elsewhere."""
        parts = [f"w{self.bits}", self.scales]
        parts += [f"zero_{self.zeros}"] if self.zeros else []
        parts += [f"block{self.block}"] if self.block else []
        parts += [f"k{self.k}"] if self.k else []
        parts += ["table"] if self.table else []
        parts += [_SCALE_NAMES[self.scale_type]] if self.scale_type in _SCALE_NAMES else []
        parts += ["global"] if self.global_scale else []
        return parts + ([] if self.folding == "none" else [f"folded_{self.folding}"])

    @classmethod
    def trims(cls, bits: int, block_size: int, k: int) -> tuple[int, int]:
        """`block` and `k` of a weight: whether padding codes must be cut off."""
        whole_words = block_size % (8 // gcd(8, bits)) == 0
        return (0 if whole_words else block_size), (k if -k % block_size else 0)


class Codes(NamedTuple):
    """Unpacked codes: value name, how many position axes it has, its order."""

    name: str
    positions: int
    order: Order


def float_weight(body: Body, form: WeightForm, order: Order) -> str:
    """The decoded float32 weight `[k, n]` or `[n, k]`."""
    fold_table = form.folding == "table"
    table = _folded_table(body) if fold_table else "table"
    values = _table_values(body, form, table) if form.table else _integer_values(body, form, order)
    if form.folding == "blocks":
        scaled = _folded(body, form, values)
    else:
        scales = scale_values(body, form, guard=form.scale_type != "float32")
        scales = body.op("Mul", scales, _unit(body, form)) if fold_table else scales
        scaled = body.op("Mul", values.name, _block_tensor(body, scales, values))
    flat = _flatten(body, values._replace(name=scaled), form.k)
    return flat if values.order == order else body.op("Transpose", flat, perm=[1, 0])


def scale_values(body: Body, form: WeightForm, *, guard: bool) -> str:
    """The scales, float32 in their own shape: `compress.formats.scale_values`."""
    value = body.guarded("scales", 2) if guard else "scales"
    if form.scale_type == "uint8":
        powers = [*np.ldexp(1.0, np.arange(255) - 127), np.nan]
        value = body.op("Gather", body.constant(np.array(powers, np.float32)), body.cast(value, "INT32"))
    elif form.scale_type != "float32":
        value = body.cast(value, "FLOAT")
    return body.op("Mul", value, "global_scale") if form.global_scale else value


def _folded(body: Body, form: WeightForm, values: Codes) -> str:
    """`folding.fold`, operation by operation, so that roundings agree; blocks of small ratio keep their scales."""
    scales = scale_values(body, form, guard=True)
    channel = body.op("ReduceMax", scales, body.ints(1), keepdims=1)
    ratio = body.op("Div", scales, channel)
    folds = body.op("GreaterOrEqual", ratio, body.scalar(SMALLEST_RATIO))  # not where 0 is divided by 0
    factor = body.op("Mul", ratio, body.op("Div", body.scalar(PANEL_MAX), _largest(body, form)))
    unit = _block_tensor(body, body.op("Mul", channel, _unit(body, form)), values)
    multiplied = body.op("Mul", values.name, _block_tensor(body, body.op("Where", folds, factor, scales), values))
    panel = body.op("Mul", body.op("Round", multiplied), unit)
    return body.op("Where", _block_tensor(body, folds, values), panel, multiplied)


def _folded_table(body: Body) -> str:
    """The table as whole numbers in `_unit`: `folding.round_table`."""
    factor = body.op("Div", body.scalar(PANEL_MAX), _largest_entry(body))
    return body.op("Round", body.op("Mul", "table", factor))


def _unit(body: Body, form: WeightForm) -> str:
    """What a step of the int8 panel is worth, in units of the channel's scale."""
    return body.op("Div", _largest(body, form), body.scalar(PANEL_MAX))


def _largest(body: Body, form: WeightForm) -> str:
    return _largest_entry(body) if form.table else body.scalar(largest_value(form.bits, bool(form.zeros), None))


def _largest_entry(body: Body) -> str:
    return body.op("ReduceMax", body.op("Abs", "table"), keepdims=0)


def integer_weight(body: Body, form: WeightForm, order: Order) -> str:
    """The codes, uint8 `[k, n]` or `[n, k]`.

    Codes of 8 bits are as large unpacked as packed: constant folding may and should lay them out when the model opens.
    """
    return _flatten(body, unpack(body, form, order, guard=form.bits < 8), form.k)


def channel_vector(body: Body, name: str, granularity: str) -> str:
    """Scales or zero points `[n, 1]` or `[1, 1]` as `[n]` or as a scalar."""
    return body.op("Reshape", name, body.ints() if granularity == "tensor" else body.ints(-1))


def unpack(body: Body, form: WeightForm, order: Order, *, guard: bool = True) -> Codes:
    """The codes as uint8, one element each."""
    return unpack_blocks(body, form, body.guarded("codes", 3) if guard else "codes", order)


def unpack_blocks(body: Body, form: WeightForm, packed: str, order: Order) -> Codes:
    """Codes as uint8, one element each, of packed bytes `[n, k_blocks, block_bytes]`."""
    if form.bits == 8:
        name = body.op("Transpose", packed, perm=[1, 2, 0]) if order == "kn" else packed
        return Codes(name, 1, order)
    if 8 % form.bits == 0:
        codes = _unpack_bytes(body, form.bits, packed, order)
    else:
        codes = _unpack_words(body, form, packed, order)
    return _trim_block(body, form, codes)


def _unpack_bytes(body: Body, bits: int, packed: str, order: Order) -> Codes:
    """Codes that never straddle bytes: one shifted and masked copy of the bytes for each place in a byte."""
    one_place = body.op("Unsqueeze", body.op("Transpose", packed, perm=[1, 2, 0]), body.ints(2))  # kb bytes 1 n
    mask = body.scalar((1 << bits) - 1, "uint8")
    places = []
    for shift in range(0, 8, bits):
        place = one_place
        if shift:
            place = body.op("BitShift", place, body.scalar(shift, "uint8"), direction="RIGHT")
        places.append(place if shift + bits == 8 else body.op("BitwiseAnd", place, mask))
    name = body.op("Concat", *places, axis=2)  # kb bytes places n
    # Moving the channels to the front at the end is cheap; interleaving single bytes along the last axis is not.
    return Codes(body.op("Transpose", name, perm=[3, 0, 1, 2]) if order == "nk" else name, 2, order)


def _unpack_words(body: Body, form: WeightForm, packed: str, order: Order) -> Codes:
    """Codes of a bit stream: a word is the fewest bytes that hold whole codes (3 for 8 codes of 3 bits)."""
    count = 8 // gcd(8, form.bits)
    size = count * form.bits // 8
    if form.block:
        missing = -((form.block * form.bits + 7) // 8) % size
        packed = body.op("Pad", packed, body.ints(0, 0, 0, 0, 0, missing)) if missing else packed
    words = body.op("Reshape", packed, body.ints(0, 0, -1, size))  # n kb words bytes
    if order == "kn":
        words = body.op("Transpose", words, perm=[1, 2, 3, 0])  # kb words bytes n
    axis = 2 if order == "kn" else 3
    starts = np.arange(count) * form.bits
    shape = (count, 1) if order == "kn" else (count,)
    low = body.op("Gather", words, body.constant(starts // 8), axis=axis)
    low = body.op("BitShift", low, body.constant((starts % 8).astype(np.uint8).reshape(shape)), direction="RIGHT")
    # Bits of the next byte. Codes that do not straddle take bits which the mask then drops; 7 stands for 8 there,
    # because shifting a byte by its width is undefined.
    high = body.op("Gather", words, body.constant(np.minimum(starts // 8 + 1, size - 1)), axis=axis)
    shifts = np.minimum(8 - starts % 8, 7).astype(np.uint8).reshape(shape)
    high = body.op("BitShift", high, body.constant(shifts), direction="LEFT")
    both = body.op("BitwiseOr", low, high)
    return Codes(body.op("BitwiseAnd", both, body.scalar((1 << form.bits) - 1, "uint8")), 2, order)


def _trim_block(body: Body, form: WeightForm, codes: Codes) -> Codes:
    """The codes without the padding at the end of each block, one position axis then."""
    if not form.block:
        return codes
    count = 8 // gcd(8, form.bits)
    positions = -(-form.block // count) * count
    shape = body.ints(0, positions, -1) if codes.order == "kn" else body.ints(0, 0, positions)
    axis = 1 if codes.order == "kn" else 2
    joined = body.op("Reshape", codes.name, shape)
    return codes._replace(name=first(body, joined, form.block, axis), positions=1)


def _integer_values(body: Body, form: WeightForm, order: Order) -> Codes:
    """Code minus zero point, float32."""
    codes = unpack(body, form, order)
    values = body.cast(codes.name, "FLOAT")
    if form.zeros:
        zeros = body.cast(body.guarded("zero_points", 2), "FLOAT")  # widened when the model runs
        return codes._replace(name=body.op("Sub", values, _block_tensor(body, zeros, codes)))
    return codes._replace(name=body.op("Sub", values, body.scalar(1 << form.bits - 1)))


def _table_values(body: Body, form: WeightForm, table: str) -> Codes:
    """Table entries, float32, order `nk`: a byte looks up all the codes it holds at once."""
    if 8 % form.bits == 0:
        places = np.arange(256)[:, None] >> np.arange(0, 8, form.bits) & (1 << form.bits) - 1
        rows = table if form.bits == 8 else body.op("Gather", table, body.constant(places.astype(np.int32)))
        index = body.cast(body.guarded("codes", 3), "INT32")  # Gather takes no bytes
        codes = Codes(body.op("Gather", rows, index), 1 if form.bits == 8 else 2, "nk")
        return _trim_block(body, form, codes)
    codes = unpack(body, form, "nk")
    return codes._replace(name=body.op("Gather", table, body.cast(codes.name, "INT32")))


def _block_tensor(body: Body, value: str, codes: Codes) -> str:
    """What broadcasts against `[n, k_blocks]`, broadcasting against codes."""
    if codes.order == "kn":
        value = body.op("Transpose", value, perm=[1, 0])
    first = 1 if codes.order == "kn" else 2
    return body.op("Unsqueeze", value, body.ints(*range(first, first + codes.positions)))


def _flatten(body: Body, codes: Codes, k: int) -> str:
    """`[k, n]` or `[n, k]`, without padding at the end of the last block."""
    flat = body.op("Flatten", codes.name, axis=codes.positions + 1 if codes.order == "kn" else 1)
    return first(body, flat, k, 0 if codes.order == "kn" else 1) if k else flat


def first(body: Body, value: str, count: int, axis: int) -> str:
    """The first `count` positions of an axis."""
    return body.op("Slice", value, body.ints(0), body.ints(count), body.ints(axis))
