"""The operators in plain PyTorch: the arithmetic that every backend and every ONNX function is tested against.

Everything is float32 inside: x times `smooth`; activations rounded to their format and back; weights decoded;
`linear` or `conv2d` with bias; the low-rank branch, on the smoothed unrounded x, added; the activation function; the
residual added; the result in x's type.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from compress.formats import Scales, dynamic_scale, get_format, quantize_dequantize
from compress.formats.layout import from_blocks, to_blocks, unpack_codes
from compress.formats.qtensor import code_values, decode_packed
from compress.kernels.call import Call, ConvCall, Convolution, MatmulCall
from compress.kernels.folding import fold, largest_value, round_table


def qmatmul(*inputs: Any, **attributes: Any) -> Tensor:
    """`y [..., n]` of `schema.QMATMUL`; arguments in its order or by name. FormatError when they do not fit."""
    return matmul(MatmulCall(*inputs, **attributes))


def qconv2d(*inputs: Any, **attributes: Any) -> Tensor:
    """`y [b, n, h', w']` of `schema.QCONV2D`; arguments in its order or by name. FormatError when they do not fit."""
    return conv2d(ConvCall(*inputs, **attributes))


def matmul(call: MatmulCall, decoded: Tensor | None = None) -> Tensor:
    """`qmatmul` of a call; `decoded`, if the caller has kept it, is `weight(call)`."""
    call.check()
    return linear(call, weight(call) if decoded is None else decoded)


def linear(call: Call, w: Tensor) -> Tensor:
    """`[..., n]` of a checked call, with its float32 weight `[n, k]`."""
    x = smoothed(call)
    y = F.linear(rounded_activations(x, call), w, _float(call.bias))
    if call.low_rank_a is not None and call.low_rank_b is not None:
        y = y + x @ call.low_rank_a.float() @ call.low_rank_b.float()
    return finished(y, call)


def conv2d(call: ConvCall, decoded: Tensor | None = None) -> Tensor:
    """`qconv2d` of a call; `decoded` as in `matmul`."""
    call.check()
    return convolve(call, weight(call) if decoded is None else decoded)


def convolve(call: Convolution, w: Tensor) -> Tensor:
    """`[b, n, h', w']` of a checked call, with its float32 weight `[n, k]`.

    Padding is an exact zero: activations are rounded before it.
    """
    x = smoothed(call)
    shape = (x.shape[1] // call.groups, *call.kernel)
    y = _conv2d(rounded_activations(x, call), w.reshape(call.n, *shape), _float(call.bias), call)
    if call.low_rank_a is not None and call.low_rank_b is not None:
        inner = _conv2d(x, call.low_rank_a.float().T.reshape(-1, *shape), None, call)  # b r h' w'
        y = y + F.conv2d(inner, call.low_rank_b.float().T[:, :, None, None])
    return finished(y, call)


def _conv2d(x: Tensor, w: Tensor, bias: Tensor | None, call: Convolution) -> Tensor:
    return F.conv2d(x, w, bias, call.stride, call.padding, call.dilation, call.groups)


def smoothed(call: Call) -> Tensor:
    """x times `smooth`, float32; `smooth` runs along the last axis, or along the channels of images."""
    x = call.x.float()
    if call.smooth is None:
        return x
    channels = (-1, 1, 1) if isinstance(call, Convolution) else (-1,)
    return x * call.smooth.float().reshape(channels)


def finished(y: Tensor, call: Call) -> Tensor:
    """The output of a float32 product y of its shape: activation function, then residual, in x's type."""
    if call.activation == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    elif call.activation == "silu":
        y = F.silu(y)
    if call.residual is not None:
        y = y + call.residual.float()
    return y.to(call.x.dtype)


def rounded_activations(x: Tensor, call: Call) -> Tensor:
    """Smoothed x after rounding to `act_format` with the given or the rows' own scales; x itself for `none`."""
    if call.act_format == "none":
        return x
    fmt = get_format(call.act_format)
    zero = _float(call.act_zero_point)
    if isinstance(call, Convolution):
        scale = dynamic_scale(x, fmt, (1, 2, 3)) if call.act_scale is None else call.act_scale.float()
        return quantize_dequantize(x, fmt, scale, zero)
    groups = to_blocks(x, call.act_group) if call.act_group else x[..., None, :]  # ... groups positions
    scale = dynamic_scale(groups, fmt, (-1,)) if call.act_scale is None else call.act_scale.float()[..., None]
    return from_blocks(quantize_dequantize(groups, fmt, scale, None if zero is None else zero[..., None]), call.k)


def weight(call: MatmulCall) -> Tensor:
    """The float32 weight `[n, k]` that the call multiplies with: decoded, in mode `folded` with folding's rounding."""
    table = _float(call.table)
    scales = Scales(call.scales, call.zero_points, call.global_scale)
    if not call.folds:
        blocks = decode_packed(call.codes, scales, table, bits=call.bits, block_size=call.block_size)
        return from_blocks(blocks, call.k)
    if table is not None and call.rounds_table:
        table, unit = round_table(table)
        values = code_values(unpack_codes(call.codes, call.bits, call.block_size), None, table, call.bits)
        return from_blocks(values * (scales.values() * unit)[..., None], call.k)
    values = code_values(unpack_codes(call.codes, call.bits, call.block_size), call.zero_points, table, call.bits)
    largest = largest_value(call.bits, call.zero_points is not None, table)
    folded = fold(values, scales.values(), largest, call.bits)
    return from_blocks(folded.panel * folded.scale + folded.rest, call.k)


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()
