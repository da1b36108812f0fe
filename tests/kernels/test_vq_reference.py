"""The reference of vector-quantized operators against other arithmetic: loops, float64, qmatmul with a table."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import Case, build
from torch import Tensor
from vq_cases import VQ_CASES, VQ_CONV_CASES, VqCase, build_vq, build_vq_conv, weight_arguments

from compress.formats import WeightSpec, get_format, quantize_dequantize
from compress.formats.vq import VqSpec, pack_vq, unpack_vq
from compress.kernels import reference, vq_reference
from compress.kernels.vq_call import VqMatmulCall


def _decoded(named: dict[str, Any], k: int) -> Tensor:
    """The weight in float64, codeword by codeword."""
    codes = unpack_vq(named["codes"], named["bits"], named["d"], k).long()
    codebook = named["codebook"].double()
    rows = [torch.cat([codebook[code] for code in row])[:k] for row in codes]
    return torch.stack(rows) * named["scales"].double()


@pytest.mark.parametrize("case", VQ_CASES[:3], ids=lambda case: case.name)
@pytest.mark.parametrize("k", [1, 31, 33, 100, 401])
def test_matmul_is_a_matmul_with_the_decoded_weight(case: VqCase, k: int) -> None:
    x, named = build_vq(case, k=k)
    if case.attributes:
        scale = x.abs().amax(1, keepdim=True) / 127
        x = quantize_dequantize(x, get_format("int8"), scale)
    expected = x.double() @ _decoded(named, k).T + named.get("bias", torch.zeros(())).double()
    y = vq_reference.vqmatmul(x, **named)
    assert y.dtype == torch.float32
    assert float((y - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("case", [VQ_CONV_CASES[0], VQ_CONV_CASES[5], VQ_CONV_CASES[6]], ids=lambda case: case.name)
def test_convolution_is_a_convolution_with_the_decoded_weight(case: VqCase) -> None:
    x, named = build_vq_conv(case)
    named |= {"act_format": "none", "smooth": None}
    channels = x.shape[1] // named.get("groups", 1)
    w = _decoded(named, channels * 6).reshape(-1, channels, 3, 2)
    bias = None if named.get("bias") is None else named["bias"].double()
    geometry = {name: named[name] for name in ("stride", "padding", "dilation", "groups") if name in named}
    expected = F.conv2d(x.double(), w, bias, **geometry)
    y = vq_reference.vqconv2d(x, **named)
    assert float((y - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("mode", ["exact", "folded"])
def test_sub_vectors_of_one_are_qmatmul_with_a_table(mode: str) -> None:
    """With d = 1 the codebook is a code table, all inputs and attributes mean the same."""
    inputs = ("bias", "smooth", "low_rank_a", "low_rank_b")
    case = Case("table", WeightSpec("fp4_e2m1"), {"act_format": "int8", "activation": "gelu_tanh"}, inputs)
    x, named = build(case)
    named["table"] = named["table"] * 0.37 + 0.1 if mode == "folded" else named["table"]
    named["residual"] = torch.randn(33, 37, generator=torch.Generator().manual_seed(0))
    expected = reference.qmatmul(x, **named, mode=mode)
    block, table = named.pop("block_size"), named.pop("table")
    assert block == x.shape[1] and named.pop("zero_points") is None
    named["codes"] = named["codes"][:, 0]
    y = vq_reference.vqmatmul(x, **named, codebook=table[:, None], d=1, mode=mode)
    if mode == "exact":
        assert torch.equal(y, expected)
    assert float((y - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spec", [VqSpec(8, 4), VqSpec(6, 2), VqSpec(3, 7)], ids=lambda s: f"{s.bits}x{s.d}")
def test_folding_adds_at_most_half_a_step_of_the_codebook(spec: VqSpec, dtype: str) -> None:
    named = weight_arguments(VqSpec(spec.bits, spec.d, dtype, "channel"), 37, 100)  # type: ignore[arg-type]
    x = torch.zeros(1, 100)
    exact = vq_reference.weight(VqMatmulCall(x, **named)).double()
    folded = vq_reference.weight(VqMatmulCall(x, **named, mode="folded")).double()
    bound = named["codebook"].double().abs().max() * named["scales"].double() / 254
    added = (folded - exact).abs()
    assert bool((added <= bound * (1 + 1e-4)).all()) and float((added / bound).max()) > 0.9


def test_folded_codebooks_by_hand() -> None:
    """Ties go to the even number: 127 / 2 = 63.5 to 64, 127 / 4 = 31.75 to 32, 0.5 to 0, -1.5 to -2."""
    codebook = torch.tensor([[254.0, 127.0], [-1.0, -3.0], [63.5, 1.0]])
    values, unit = vq_reference.fold_codebook(codebook)
    assert values.tolist() == [[127, 64], [0, -2], [32, 0]] and float(unit) == 2
    values, unit = vq_reference.fold_codebook(torch.zeros(4, 2))
    assert not values.any() and bool(torch.isfinite(unit))


def test_an_int8_codebook_is_exact_in_both_modes() -> None:
    named = weight_arguments(VqSpec(8, 4, "int8", "channel"), 37, 100)
    named["codebook"][0, 0] = -128
    calls = [VqMatmulCall(torch.zeros(1, 100), **named, mode=mode) for mode in ("exact", "folded")]
    assert torch.equal(*map(vq_reference.weight, calls))


def test_the_padding_of_the_last_sub_vector_means_nothing() -> None:
    named = weight_arguments(VqSpec(2, 4, "float32"), 1, 5)
    codebook = torch.arange(16.0).reshape(4, 4)
    named |= {"codes": pack_vq(torch.tensor([[1, 3]], dtype=torch.uint8), 2), "scales": torch.ones(1, 1)}
    expected = vq_reference.vqmatmul(torch.ones(1, 5), **{**named, "codebook": codebook})
    assert float(expected) == 4 + 5 + 6 + 7 + 12
    codebook[3, 1:] = torch.nan
    assert torch.equal(vq_reference.vqmatmul(torch.ones(1, 5), **{**named, "codebook": codebook}), expected)


def test_half_precision_in_half_precision_out() -> None:
    x, named = build_vq(VQ_CASES[0])
    y = vq_reference.vqmatmul(x.half(), **named)
    assert y.dtype == torch.float16
    assert torch.equal(y, vq_reference.vqmatmul(x.half().float(), **named).half())


@pytest.mark.parametrize("act_format", ["none", "int8"])
def test_a_rows_result_does_not_depend_on_its_batch(act_format: str) -> None:
    x, named = build_vq(VqCase("rows", VqSpec(), {"act_format": act_format}))
    whole = vq_reference.vqmatmul(x, **named)
    alone = vq_reference.vqmatmul(x[5:6], **named)
    torch.testing.assert_close(whole[5:6], alone, rtol=1e-5, atol=1e-6)
