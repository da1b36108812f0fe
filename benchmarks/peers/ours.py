"""Our operators: `compress` from float rows to float rows as a model calls them, `compress_gemm` the product alone.

Activations are int8 with one scale per token (per image, for convolutions), found in the call. Scales of groups are
float16 unless the format prescribes them, as recipes have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from benchmarks.peers.base import Bind, Call, Layer, Provider, Run, SelfTimed
from compress.errors import InputError
from compress.formats import WeightSpec, get_format, quantize_weight
from compress.formats.vq import pack_vq
from compress.kernels import cpu_library
from compress.kernels.backends import Reference, select
from compress.kernels.call import ConvCall, MatmulCall
from compress.kernels.vq_call import VqConvCall, VqMatmulCall

Arguments = dict[str, Any]
_VQ_BITS, _VQ_LENGTH = 8, 4
_LIMITS = {"int8": 0.03, "vq2": 1.0}  # largest explained error; four-bit formats stay below a quarter
_FOUR_BITS = 0.25


@dataclass(frozen=True)
class Variant:
    """One weight layout."""

    format: str
    group: int
    mode: str

    @property
    def op(self) -> str:
        return "vqmatmul" if self.format.startswith("vq") else "qmatmul"

    @property
    def conv_op(self) -> str:
        return "vqconv2d" if self.op == "vqmatmul" else "qconv2d"

    @property
    def limit(self) -> float:
        return _LIMITS.get(self.format, _FOUR_BITS)

    def operand(self, rows: Tensor) -> Arguments:
        """The operator's arguments for float weight rows `[n, k]`."""
        given = _vector_operand(rows) if self.op == "vqmatmul" else self._operand(rows)
        return given | {"act_format": "int8", "mode": self.mode}

    def _operand(self, rows: Tensor) -> Arguments:
        spec = WeightSpec.natural(self.format)
        if self.group and spec.group is None:
            spec = WeightSpec(self.format, "group", self.group, scale_dtype="float16")
        packed = quantize_weight(rows, spec)
        return {
            "codes": packed.codes,
            "scales": packed.scales,
            "global_scale": packed.global_scale,
            "table": get_format(self.format).table(),
            "bits": get_format(self.format).bits,
            "block_size": spec.block_size(rows.shape[1]),
        }


def _vector_operand(rows: Tensor) -> Arguments:
    """Codes of 8 bits for 4 neighbours; the codewords are sub-vectors of the weight itself: only speed counts here."""
    if rows.shape[1] % _VQ_LENGTH:
        raise InputError(f"sub-vectors of {_VQ_LENGTH} do not divide {rows.shape[1]} inputs")
    vectors = rows.reshape(-1, _VQ_LENGTH)
    codewords = vectors[torch.linspace(0, len(vectors) - 1, 1 << _VQ_BITS).long()]  # 256 4
    scale = codewords.abs().max() / 127
    parts = torch.chunk(vectors, ceil(len(vectors) / 65536))  # distances of all at once would fill the memory
    codes = torch.cat([torch.cdist(part, codewords).argmin(1) for part in parts])
    return {
        "codes": pack_vq(codes.to(torch.uint8).reshape(len(rows), -1), _VQ_BITS),
        "codebook": (codewords / scale).round().to(torch.int8),
        "scales": scale.reshape(1, 1),
        "bits": _VQ_BITS,
        "d": _VQ_LENGTH,
    }


VARIANTS = (
    Variant("int4", 0, "exact"),
    *(Variant("int4", group, mode) for group in (128, 32) for mode in ("exact", "folded")),
    Variant("fp4_e2m1", 32, "folded"),
    *(Variant("mxfp4", 32, mode) for mode in ("exact", "folded")),
    *(Variant("nvfp4", 16, mode) for mode in ("exact", "folded")),
    Variant("nf4", 64, "folded"),
    Variant("int8", 0, "exact"),
    Variant("vq2", 0, "exact"),
)
_CONV_VARIANTS = tuple(v for v in VARIANTS if v.format in ("int4", "int8", "vq2") and not v.group)


def _bind(kind: Any, arguments: Arguments) -> Bind:
    """Rows to a timed call of the torch operator, compared with the reference."""
    operator: Any = getattr(torch.ops.compress, kind.name)

    def bind(x: Tensor) -> Run:
        call = kind(x, **arguments)
        backend = select(call.name, call.facts()).name
        return Call(lambda: operator(x, **arguments), backend=backend, reference=lambda: Reference()(call))

    return bind


def _matmul(variant: Variant) -> Callable[[Layer], Bind]:
    kind: Any = VqMatmulCall if variant.op == "vqmatmul" else MatmulCall
    return lambda layer: _bind(kind, variant.operand(layer.weight))


def _conv(variant: Variant) -> Callable[[Layer], Bind]:
    kind: Any = VqConvCall if variant.op == "vqmatmul" else ConvCall

    def build(layer: Layer) -> Bind:
        assert layer.geometry is not None
        kernel, stride, padding, groups = layer.geometry
        geometry = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2, "groups": groups}
        return _bind(kind, variant.operand(layer.weight.flatten(1)) | geometry)

    return build


def _gemm(variant: Variant) -> Callable[[Layer], Bind]:
    def build(layer: Layer) -> Bind:
        arguments = variant.operand(layer.weight)

        def bind(x: Tensor) -> Run:
            call = MatmulCall(x, **arguments)
            refusal = cpu_library.the_library().refusal(call.name, call.facts())
            if refusal:
                raise InputError(refusal)
            library = cpu_library.the_library()
            return SelfTimed(
                lambda calls: [library.time_product(call)[0] for _ in range(calls)],
                lambda: library.time_product(call)[1],
                lambda: Reference()(call),
            )

        return bind

    return build


def peak_gops(threads: int) -> float | None:
    """Measured limit of the processor's int8 dot products, GOP/s; None where our library is not built."""
    return cpu_library.peak_gops(threads)


MATMUL = (
    *(Provider("compress", "matmul", v.format, v.group, v.mode, _matmul(v), v.limit, op=v.op) for v in VARIANTS),
    *(
        Provider(
            "compress_gemm",
            "matmul",
            v.format,
            v.group,
            v.mode,
            _gemm(v),
            v.limit,
            note="timed inside the library, on rows that are int8 already",
            refusal=cpu_library.reason,
        )
        for v in VARIANTS
        if v.op == "qmatmul"
    ),
)
CONV = tuple(
    Provider("compress", "conv", v.format, v.group, v.mode, _conv(v), v.limit, op=v.conv_op) for v in _CONV_VARIANTS
)
