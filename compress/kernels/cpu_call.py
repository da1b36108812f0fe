"""Calls of the operators as the C interface wants them: float32 tensors without gaps, their addresses in structures."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int64
from typing import Any

import torch
from torch import Tensor

from compress.formats import get_format, scale_values
from compress.kernels.call import Call, Convolution, Facts, MatmulCall
from compress.kernels.cpu_abi import ACTIVATIONS, MODES, Geometry, Options, Vectors, Weight
from compress.kernels.vq_call import VqMatmulCall

_PRESENT = 1  # an address that is never read


class Bound:
    """A checked call ready for the library; keeps the converted tensors alive.

    Attributes: `x` float32, `y` its uninitialized float32 output, and the structures `weight`, `options`, `geometry`.
    """

    def __init__(self, call: Call) -> None:
        self._kept: list[Tensor] = []
        self.x = _dense(call.x)
        self.y = torch.empty(call.output_shape)
        self.weight: Weight | Vectors = self._vectors(call) if isinstance(call, VqMatmulCall) else self._weight(call)
        self.options = self._options(call)
        self.geometry = _geometry(call) if isinstance(call, Convolution) else None

    def _weight(self, call: Call) -> Weight:
        assert isinstance(call, MatmulCall)
        zero = call.zero_points
        return Weight(
            codes=self._keep(call.codes.contiguous()),
            scales=self._keep(scale_values(call.scales, call.global_scale).contiguous()),
            zero_points=None if zero is None else self._keep(zero.contiguous()),
            table=self._float(call.table),
            n=call.n,
            k=call.k,
            block_size=call.block_size,
            scale_rows=call.scales.shape[0],
            scale_columns=call.scales.shape[1],
            zero_rows=1 if zero is None else zero.shape[0],
            zero_columns=1 if zero is None else zero.shape[1],
            bits=call.bits,
            mode=_mode(call.folds),
        )

    def _vectors(self, call: VqMatmulCall) -> Vectors:
        return Vectors(
            codes=self._keep(call.codes.contiguous()),
            codebook=self._float(call.codebook),
            scales=self._float(call.scales),
            n=call.n,
            k=call.k,
            d=call.d,
            scale_rows=call.scales.shape[0],
            bits=call.bits,
            mode=_mode(call.folds),
        )

    def _options(self, call: Call) -> Options:
        scale, zero = _by_row(call.act_scale, call), _by_row(call.act_zero_point, call)
        return Options(
            smooth=self._float(call.smooth),
            act_scale=self._float(scale),
            act_zero_point=self._float(zero),
            act_scale_rows=1 if scale is None else len(scale),
            act_zero_rows=1 if zero is None else len(zero),
            bias=self._float(call.bias),
            low_rank_a=self._float(call.low_rank_a),
            low_rank_b=self._float(call.low_rank_b),
            rank=0 if call.low_rank_a is None else call.low_rank_a.shape[1],
            residual=self._float(call.residual),
            activation=ACTIVATIONS[call.activation],
            **_range(call.act_format),
        )

    def _float(self, value: Tensor | None) -> int | None:
        return None if value is None else self._keep(_dense(value))

    def _keep(self, value: Tensor) -> int:
        self._kept.append(value)
        return value.data_ptr()


def refusal(op_name: str, facts: Facts) -> str:
    """Why the kernels cannot be asked for a layer of those facts; empty when the library decides."""
    if facts.device != "cpu":
        return f"runs on the CPU only, not on {facts.device}"
    if facts.act_format == "none":
        return "activations are floating point"
    if get_format(facts.act_format).kind != "int":
        return f"{facts.act_format} activations are not integers"
    if facts.act_group:
        return f"activations have a scale for each {facts.act_group} positions"
    if facts.table and not (facts.folds or facts.table_is_whole):
        return "the weight's code table does not hold whole numbers"
    if facts.vector and not (facts.folds or facts.integer_codebook):
        return "the codebook does not hold whole numbers"
    return ""


def structures(facts: Facts) -> tuple[Structure, ...]:
    """What `compress_*_supported` wants to know of a layer, in its order: geometry of convolutions, weight, options."""
    shared: dict[str, Any] = {"codes": _PRESENT, "scales": _PRESENT, "n": facts.n, "k": facts.k, "bits": facts.bits}
    shared |= {"mode": _mode(facts.folds), "scale_rows": facts.n}
    if facts.vector:
        book = _like(facts.integer_codebook, facts.vector << facts.bits)
        weight: Structure = Vectors(codebook=ctypes.addressof(book), d=facts.vector, **shared)
    else:
        book = _like(facts.table_is_whole, 1 << facts.bits)
        weight = Weight(
            zero_points=_presence(facts.zero_points),
            table=ctypes.addressof(book) if facts.table else None,
            block_size=facts.block_size,
            scale_columns=facts.scale_blocks,
            zero_rows=facts.n if facts.zero_points else 1,
            zero_columns=facts.scale_blocks if facts.zero_points else 1,
            **shared,
        )
    weight.values = book  # kept alive with the structure
    options = Options(
        smooth=_presence(facts.smooth),
        act_scale=_presence(facts.act_static),
        act_zero_point=_presence(facts.act_zero_point),
        act_scale_rows=1,
        act_zero_rows=1,
        low_rank_a=_presence(facts.rank > 0),
        low_rank_b=_presence(facts.rank > 0),
        rank=facts.rank,
        residual=_presence(facts.residual),
        activation=ACTIVATIONS[facts.activation],
        **_range(facts.act_format),
    )
    if facts.geometry is None:
        return weight, options
    g = facts.geometry
    smallest = [d * (k - 1) + 1 for k, d in zip(g.kernel, g.dilation, strict=True)]  # one output without padding
    return _geometry_of(1, g.channels, *smallest, g.kernel, g.stride, g.padding, g.dilation, g.groups), weight, options


def _like(whole: bool, count: int) -> ctypes.Array[c_float]:
    """Values of a table or codebook of which only one thing is known: whether they are whole numbers."""
    return (c_float * count)(*(i % 64 if whole else 0.3 + i for i in range(count)))


def _presence(given: bool) -> int | None:
    return _PRESENT if given else None


def _mode(folds: bool) -> int:
    """The library folds what it is told to fold, and nothing else."""
    return MODES["folded" if folds else "exact"]


def _range(act_format: str) -> dict[str, Any]:
    """How the format's codes run."""
    fmt = get_format(act_format)
    low, high = fmt.code_range
    return {"act_low": low, "act_high": high, "act_max": fmt.max_value}


def _dense(value: Tensor) -> Tensor:
    return value.detach().float().contiguous()


def _by_row(value: Tensor | None, call: Call) -> Tensor | None:
    """Static scales or zero points: one number for all rows (images), or one for each."""
    if value is None or value.numel() == 1:
        return None if value is None else value.reshape(1)
    return value.expand(call.act_scale_shape).reshape(-1)


def _geometry(call: Convolution) -> Geometry:
    shape = tuple(call.x.shape)
    return _geometry_of(*shape, call.kernel, call.stride, call.padding, call.dilation, call.groups)


def _geometry_of(*values: Any) -> Geometry:
    pair = c_int64 * 2
    return Geometry(*(value if isinstance(value, int) else pair(*value) for value in values))
