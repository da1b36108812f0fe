"""Calls of the operators for the kernel tests: what a weight, activations and the optional inputs can look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.formats import WeightSpec, quantize_weight
from compress.kernels.call import ConvCall

K, N = 100, 37


@dataclass(frozen=True)
class Case:
    """One kind of qmatmul call; `inputs` are optional operator inputs by name."""

    name: str
    spec: WeightSpec
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


def optional_inputs(k: int = K, n: int = N, rows: int = 33) -> dict[str, Tensor]:
    """Values for the optional inputs, by name; `act_scale_rows` and `_groups`: by row, by 64 positions."""
    g = torch.Generator().manual_seed(7)
    return {
        "bias": torch.randn(n, generator=g),
        "act_scale": torch.tensor(0.021),
        "act_zero_point": torch.tensor(117.0),
        "act_scale_rows": torch.rand(rows, 1, generator=g) * 0.02 + 0.01,
        "act_scale_groups": torch.rand(-(-k // 64), generator=g) * 0.02 + 0.01,
        "smooth": torch.rand(k, generator=g) + 0.5,
        "low_rank_a": torch.randn(k, 5, generator=g) * 0.1,
        "low_rank_b": torch.randn(5, n, generator=g) * 0.1,
        "residual": torch.randn(rows, n, generator=g),
    }


def build(case: Case, rows: int = 33, k: int = K, n: int = N) -> tuple[Tensor, dict[str, Any]]:
    """x `[rows, k]` and every other argument of the call by name."""
    g = torch.Generator().manual_seed(rows * 1000 + k)
    weight = torch.randn(n, k, generator=g) * torch.logspace(-2, 0, n)[:, None]
    return torch.randn(rows, k, generator=g), arguments(case, weight, optional_inputs(k, n, rows))


def arguments(case: Case, weight: Tensor, optional: dict[str, Tensor]) -> dict[str, Any]:
    """Every argument but x of a call with that weight, by name."""
    q = quantize_weight(weight, case.spec)
    given = {name.removesuffix("_rows").removesuffix("_groups"): optional[name] for name in case.inputs}
    return {
        "codes": q.codes,
        "scales": q.scales,
        "zero_points": q.zero_points,
        "table": case.spec.number_format.table(),
        **({} if q.global_scale is None else {"global_scale": q.global_scale}),
        "bits": case.spec.number_format.bits,
        "block_size": case.spec.block_size(weight[0].numel()),
        **given,
        **case.attributes,
    }


_INT8 = {"act_format": "int8"}
CASES = (
    Case("w4g32", WeightSpec("int4", "group", 32)),
    Case("w4g32_asymmetric_half_scales", WeightSpec("int4", "group", 32, False, "float16"), inputs=("bias",)),
    Case("fp4_g16", WeightSpec("fp4_e2m1", "group", 16), inputs=("bias",)),
    Case("fp8", WeightSpec("fp8_e4m3"), {"act_format": "fp8_e4m3"}),
    Case("w3", WeightSpec("int3", symmetric=False), _INT8),
    Case("w2_tensor", WeightSpec("int2", "tensor"), _INT8),
    Case("w6g64", WeightSpec("int6", "group", 64), _INT8, ("bias",)),
    Case("w8a8", WeightSpec("int8"), _INT8, ("bias",)),
    Case("w8a8_asymmetric_weight", WeightSpec("int8", symmetric=False), _INT8, ("bias",)),
    Case("w8a8_static", WeightSpec("int8"), _INT8, ("bias", "act_scale")),
    Case("w8a8_static_by_row", WeightSpec("int8"), _INT8, ("act_scale_rows",)),
    Case("w8a8_static_by_group", WeightSpec("int8"), {**_INT8, "act_group": 64}, ("act_scale_groups",)),
    Case("w8a8_unsigned", WeightSpec("int8", symmetric=False), {"act_format": "uint8"}, ("bias",)),
    Case("w4a4_unsigned", WeightSpec("int4"), {"act_format": "uint4"}),
    Case("w8a8_zero_point", WeightSpec("int8"), {"act_format": "uint8"}, ("bias", "act_scale", "act_zero_point")),
    Case(
        "both_zero_points",
        WeightSpec("int8", "group", 50, symmetric=False),
        {"act_format": "uint8"},
        ("act_scale", "act_zero_point"),
    ),
    Case("w4g32_a8", WeightSpec("int4", "group", 32), _INT8, ("bias",)),
    Case("w4g32_asymmetric_a8", WeightSpec("int4", "group", 32, symmetric=False), _INT8),
    Case("w4a4_groups", WeightSpec("int4", "group", 64), {"act_format": "int4", "act_group": 64}, ("bias",)),
    Case("w4g64_a8g32", WeightSpec("int4", "group", 64, symmetric=False), {**_INT8, "act_group": 32}),
    Case("a4_fp4", WeightSpec("fp4_e2m1", "group", 32), {"act_format": "fp4_e2m1", "act_group": 32}),
    Case("smooth", WeightSpec("int8"), _INT8, ("smooth", "bias")),
    Case("svdquant", WeightSpec("int4", "group", 32), _INT8, ("smooth", "low_rank_a", "low_rank_b", "bias")),
    Case("folded", WeightSpec("int4", "group", 32), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("folded_asymmetric", WeightSpec("int4", "group", 32, symmetric=False), {**_INT8, "mode": "folded"}),
    Case("folded_fp4", WeightSpec("fp4_e2m1", "group", 32), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("folded_float_activations", WeightSpec("int3", "group", 32), {"mode": "folded"}),
    Case(
        "folded_zero_point",
        WeightSpec("int4", "group", 32),
        {"act_format": "uint8", "mode": "folded"},
        ("act_scale", "act_zero_point"),
    ),
    Case("nf4", WeightSpec("nf4"), _INT8, ("bias",)),
    Case("nf4_g64_half_scales", WeightSpec("nf4", "group", 64, scale_dtype="float16")),
    Case("mxfp4", WeightSpec.natural("mxfp4"), inputs=("bias",)),
    Case("mxfp4_a8", WeightSpec.natural("mxfp4"), _INT8, ("bias",)),
    Case("nvfp4", WeightSpec.natural("nvfp4"), inputs=("bias",)),
    Case("nvfp4_a8", WeightSpec.natural("nvfp4"), _INT8, ("smooth",)),
    Case("fp4_channel_a8", WeightSpec("fp4_e2m1"), _INT8, ("bias",)),
    Case("folded_nf4", WeightSpec("nf4"), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("folded_nf4_tensor", WeightSpec("nf4", "tensor"), {"mode": "folded"}),
    Case("folded_nf4_g32", WeightSpec("nf4", "group", 32, scale_dtype="float16"), {**_INT8, "mode": "folded"}),
    Case("folded_mxfp4", WeightSpec.natural("mxfp4"), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("folded_nvfp4", WeightSpec.natural("nvfp4"), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("folded_fp4_channel", WeightSpec("fp4_e2m1"), {**_INT8, "mode": "folded"}),
    Case("gelu", WeightSpec("int4", "group", 32), {**_INT8, "activation": "gelu_tanh"}, ("bias",)),
    Case("silu_float", WeightSpec("int4", "group", 32), {"activation": "silu"}, ("bias",)),
    Case("residual", WeightSpec("int8"), _INT8, ("bias", "residual")),
    Case(
        "everything_after",
        WeightSpec("int4", "group", 32),
        {**_INT8, "mode": "folded", "activation": "silu"},
        ("smooth", "low_rank_a", "low_rank_b", "bias", "residual"),
    ),
)
CONV_CASES = (
    Case("conv_w4g16", WeightSpec("int4", "group", 16)),
    Case("conv_w8a8", WeightSpec("int8"), _INT8, ("bias",)),
    Case("conv_fp4", WeightSpec("fp4_e2m1", "group", 16), {"act_format": "fp8_e4m3"}, ("bias",)),
    Case("conv_static", WeightSpec("int8", symmetric=False), {"act_format": "uint8"}, ("act_scale", "act_zero_point")),
    Case("conv_static_symmetric", WeightSpec("int8"), _INT8, ("bias", "act_scale")),
    Case("conv_smooth", WeightSpec("int8"), _INT8, ("smooth", "bias")),
    Case("conv_strided", WeightSpec("int8"), {**_INT8, "stride": [2, 1], "dilation": [1, 2]}, ("bias",)),
    Case("conv_grouped", WeightSpec("int4", "group", 16), {**_INT8, "groups": 3}, ("bias",)),
    Case("conv_low_rank", WeightSpec("int4", "group", 16), _INT8, ("low_rank_a", "low_rank_b", "smooth")),
    Case("conv_mxfp4", WeightSpec.natural("mxfp4"), _INT8, ("bias",)),
    Case("conv_nvfp4", WeightSpec.natural("nvfp4"), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("conv_nf4", WeightSpec("nf4"), {**_INT8, "mode": "folded", "activation": "gelu_tanh"}, ("bias",)),
    Case("conv_folded", WeightSpec("int4", "group", 16), {**_INT8, "mode": "folded"}, ("bias",)),
    Case("conv_silu_residual", WeightSpec("int8"), {**_INT8, "activation": "silu", "stride": [2, 1]}, ("residual",)),
)
CHANNELS, OUTPUTS, KERNEL = 6, 9, (3, 2)


def build_conv(case: Case, batch: int = 3) -> tuple[Tensor, dict[str, Any]]:
    """x `[batch, 6, 9, 7]` and every other argument of a qconv2d call by name."""
    g = torch.Generator().manual_seed(batch)
    channels = CHANNELS // case.attributes.get("groups", 1)
    weight = torch.randn(OUTPUTS, channels, *KERNEL, generator=g)
    optional = optional_inputs(weight[0].numel(), OUTPUTS)
    optional["smooth"] = optional["smooth"][:CHANNELS]
    given = {"kernel": list(KERNEL), "padding": [1, 1], **arguments(case, weight, optional)}
    x = torch.randn(batch, CHANNELS, 9, 7, generator=g)
    if "residual" in given:
        given["residual"] = torch.randn(ConvCall(x, **given).output_shape, generator=g)
    return x, given
