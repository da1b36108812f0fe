"""PyTorch: float32 and bfloat16 layers as a user gets them, and the bare int8 matmul of oneDNN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.base import Bind, Call, Layer, Provider, Run

_SPINS = "OpenMP threads of torch wait busily for a moment after a call"


def _float(dtype: torch.dtype) -> Provider:
    def build(layer: Layer) -> Bind:
        weight = layer.weight.to(dtype)

        def bind(x: Tensor) -> Run:
            given = x.to(dtype)
            if layer.geometry is None:
                return Call(lambda: F.linear(given, weight), Tensor.float)
            _, stride, padding, groups = layer.geometry
            return Call(lambda: F.conv2d(given, weight, None, stride, padding, 1, groups), Tensor.float)

        return bind

    name, full, limit = ("torch_bf16", "bfloat16", 0.01) if dtype == torch.bfloat16 else ("torch_fp32", "float32", 1e-4)
    note = f"takes and gives bfloat16, so half the bytes of the others; {_SPINS}" if name == "torch_bf16" else _SPINS
    return Provider(name, "matmul", full, 0, "float", build, limit, note=note)


def _int_mm(layer: Layer) -> Bind:
    scale = layer.weight.abs().amax(1) / 127  # n
    weight = (layer.weight / scale[:, None]).round().to(torch.int8).t()  # k n, as oneDNN likes it

    def bind(x: Tensor) -> Run:
        rows = x.abs().amax(1, keepdim=True) / 127
        codes = (x / rows).round().to(torch.int8)
        return Call(lambda: torch._int_mm(codes, weight), lambda sums: sums.float() * rows * scale)

    return bind


_FP32, _BF16 = _float(torch.float32), _float(torch.bfloat16)
_NO_ROUNDING = f"int8 codes to int32 sums: neither rounding of x nor scaling is timed; {_SPINS}"
MATMUL = (
    _FP32,
    _BF16,
    Provider("torch_int_mm", "matmul", "int8", 0, "codes", _int_mm, 0.03, note=_NO_ROUNDING),
)
CONV = tuple(Provider(p.name, "conv", p.format, 0, "float", p.build, p.limit, note=p.note) for p in (_FP32, _BF16))
