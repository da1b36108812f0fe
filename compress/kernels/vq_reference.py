"""`vqmatmul` and `vqconv2d` in plain PyTorch: `reference.py`'s arithmetic on weights looked up in a codebook."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.formats.vq import decode_vq
from compress.kernels import reference
from compress.kernels.folding import PANEL_MAX, SMALLEST_LARGEST
from compress.kernels.vq_call import VqConvCall, VqMatmulCall


class FoldedCodebook(NamedTuple):
    """A codebook in whole numbers from -127 to 127, float32 `[codewords, d]`, and their unit, float32 0-D."""

    values: Tensor
    unit: Tensor


def vqmatmul(*inputs: Any, **attributes: Any) -> Tensor:
    """`y [..., n]` of `schema.VQMATMUL`; arguments in its order or by name. FormatError when they do not fit."""
    return matmul(VqMatmulCall(*inputs, **attributes))


def vqconv2d(*inputs: Any, **attributes: Any) -> Tensor:
    """`y [b, n, h', w']` of `schema.VQCONV2D`; arguments in its order or by name. FormatError when they do not fit."""
    return conv2d(VqConvCall(*inputs, **attributes))


def matmul(call: VqMatmulCall) -> Tensor:
    """`vqmatmul` of a call."""
    call.check()
    return reference.linear(call, weight(call))


def conv2d(call: VqConvCall) -> Tensor:
    """`vqconv2d` of a call."""
    call.check()
    return reference.convolve(call, weight(call))


def weight(call: VqMatmulCall) -> Tensor:
    """The float32 weight `[n, k]` that the call multiplies with: decoded, when it folds from the rounded codebook."""
    if not call.folds:
        return decode_vq(call.codes, call.codebook, call.scales, call.k)
    values, unit = fold_codebook(call.codebook)
    return decode_vq(call.codes, values, call.scales.float() * unit, call.k)


def fold_codebook(codebook: Tensor) -> FoldedCodebook:
    """The codebook as int8 values: `round(codebook * (127 / max|codebook|))`, half to even, unit `max|codebook| / 127`.

    Added error, per weight: at most `max|codebook| * scale / 254`.
    Quotients and products are rounded to float32. The largest magnitude counts as at least 2**-100, so that a codebook
    of zeros stays one.
    """
    values = codebook.float()
    largest = values.abs().amax().clamp_min(SMALLEST_LARGEST)
    most = torch.full_like(largest, PANEL_MAX)  # a plain 127 / tensor would multiply by the rounded reciprocal
    return FoldedCodebook((values * (most / largest)).round_(), largest / most)
