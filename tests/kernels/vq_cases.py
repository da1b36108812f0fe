"""Calls of the operators with vector-quantized weights, for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from kernel_cases import CHANNELS, KERNEL, OUTPUTS, optional_inputs
from torch import Tensor

from compress.formats.vq import VqSpec, pack_vq, vector_count, vq_shape

K, N = 100, 37


@dataclass(frozen=True)
class VqCase:
    """One kind of vqmatmul or vqconv2d call; `inputs` are optional operator inputs by name."""

    name: str
    spec: VqSpec = field(default_factory=VqSpec)
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


def weight_arguments(spec: VqSpec, n: int, k: int, seed: int = 0) -> dict[str, Any]:
    """Random codes, codebook and scales of a weight `[n, k]`, and the attributes that describe them."""
    g = torch.Generator().manual_seed(seed)
    shapes = vq_shape((n, k), spec)
    codes = torch.randint(0, spec.codewords, (n, vector_count(k, spec.d)), dtype=torch.uint8, generator=g)
    codebook = torch.randn(shapes.codebook, generator=g)
    if spec.codebook_dtype == "int8":
        codebook = (codebook * 40).round().clamp(-128, 127)
    scales = torch.rand(shapes.scales, generator=g) * 0.1 + 0.05
    return {
        "codes": pack_vq(codes, spec.bits),
        "codebook": codebook.to(getattr(torch, spec.codebook_dtype)),
        "scales": scales.to(getattr(torch, spec.scale_dtype)),
        "bits": spec.bits,
        "d": spec.d,
    }


def _arguments(case: VqCase, n: int, k: int, optional: dict[str, Tensor]) -> dict[str, Any]:
    given = {name.removesuffix("_rows").removesuffix("_groups"): optional[name] for name in case.inputs}
    return {**weight_arguments(case.spec, n, k), **given, **case.attributes}


def build_vq(case: VqCase, rows: int = 33, k: int = K, n: int = N) -> tuple[Tensor, dict[str, Any]]:
    """x `[rows, k]` and every other argument of the call by name."""
    g = torch.Generator().manual_seed(rows * 1000 + k)
    optional = {**optional_inputs(k, n, rows), "residual": torch.randn(rows, n, generator=g)}
    return torch.randn(rows, k, generator=g), _arguments(case, n, k, optional)


def build_vq_conv(case: VqCase, batch: int = 3) -> tuple[Tensor, dict[str, Any]]:
    """x `[batch, 6, 9, 7]` and every other argument of a vqconv2d call by name; outputs are `[batch, 9, 9, 8]`."""
    g = torch.Generator().manual_seed(batch)
    k = CHANNELS // case.attributes.get("groups", 1) * KERNEL[0] * KERNEL[1]
    optional = optional_inputs(k, OUTPUTS)
    optional["smooth"] = optional["smooth"][:CHANNELS]
    optional["residual"] = torch.randn(batch, OUTPUTS, 9, 8, generator=g)
    given = {"kernel": list(KERNEL), "padding": [1, 1], **_arguments(case, OUTPUTS, k, optional)}
    return torch.randn(batch, CHANNELS, 9, 7, generator=g), given


_INT8 = {"act_format": "int8"}
_FOLDED = {"mode": "folded"}
_CHANNEL = VqSpec(granularity="channel")
VQ_CASES = (
    VqCase("vq2"),
    VqCase("vq3_half_scales", VqSpec(6, 2, "float32", "channel", "float16"), inputs=("bias",)),
    VqCase("int8_codebook", VqSpec(8, 4, "int8", "channel"), _INT8, ("bias",)),
    VqCase("folded", VqSpec(8, 4, "float32", "channel"), {**_INT8, **_FOLDED}, ("bias",)),
    VqCase("folded_float_activations", VqSpec(6, 2), _FOLDED),
    VqCase("folded_int8_codebook", VqSpec(6, 2, "int8"), {**_INT8, **_FOLDED}),
    VqCase("uneven_vectors", VqSpec(8, 3), _INT8),
    VqCase("scalars", VqSpec(4, 1, "float32"), _INT8),
    VqCase("long_vectors_few_bits", VqSpec(3, 7), inputs=("bias",)),
    VqCase("static_unsigned", _CHANNEL, {"act_format": "uint8"}, ("bias", "act_scale", "act_zero_point")),
    VqCase("static_by_row", _CHANNEL, _INT8, ("act_scale_rows",)),
    VqCase("static_by_group", VqSpec(6, 2), {**_INT8, "act_group": 64}, ("act_scale_groups",)),
    VqCase("a4_groups", VqSpec(8, 4), {"act_format": "int4", "act_group": 32}),
    VqCase("fp8_activations", VqSpec(5, 4), {"act_format": "fp8_e4m3"}),
    VqCase("low_rank", _CHANNEL, _INT8, ("smooth", "low_rank_a", "low_rank_b", "bias")),
    VqCase("gelu", _CHANNEL, {**_INT8, "activation": "gelu_tanh"}, ("bias",)),
    VqCase(
        "everything",
        VqSpec(6, 2, granularity="channel"),
        {**_INT8, **_FOLDED, "activation": "silu"},
        ("smooth", "low_rank_a", "low_rank_b", "bias", "residual"),
    ),
)
VQ_CONV_CASES = (
    VqCase("conv_vq2"),
    VqCase("conv_vq3_a8", VqSpec(6, 2, "int8", "channel"), _INT8, ("bias",)),
    VqCase("conv_folded", _CHANNEL, {**_INT8, **_FOLDED}, ("bias",)),
    VqCase("conv_uneven", VqSpec(5, 5), {"act_format": "fp8_e4m3"}),
    VqCase("conv_static", _CHANNEL, {"act_format": "uint8"}, ("act_scale", "act_zero_point")),
    VqCase("conv_strided", VqSpec(6, 2), {**_INT8, "stride": [2, 1], "dilation": [1, 2]}, ("bias",)),
    VqCase("conv_grouped", VqSpec(8, 4), {**_INT8, "groups": 3}, ("bias", "smooth")),
    VqCase(
        "conv_everything",
        VqSpec(8, 4, granularity="channel"),
        {**_INT8, "activation": "silu"},
        ("smooth", "low_rank_a", "low_rank_b", "bias", "residual"),
    ),
)
