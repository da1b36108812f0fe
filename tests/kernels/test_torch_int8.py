from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case, build

from compress.formats import WeightSpec, scale_values
from compress.kernels import reference, torch_int8
from compress.kernels.call import Facts, MatmulCall
from compress.kernels.torch_int8 import int_product, refusal

SUPPORTED = [case for case in CASES if not refusal("qmatmul", MatmulCall(*build(case)[:1], **build(case)[1]).facts())]
# Not those with a float matmul of the whole batch besides, with tensors tied to rows, or with an activation function,
# whose last bit differs in torch between the vectorized part of a tensor and its tail.
INTEGER_ONLY = [
    case
    for case in SUPPORTED
    if not {"low_rank_a", "act_scale_rows", "residual"} & set(case.inputs) and "activation" not in case.attributes
]


def test_the_layers_it_should_take() -> None:
    names = {case.name for case in SUPPORTED}
    assert {case.name for case in CASES} - names == {
        "w4g32",
        "w4g32_asymmetric_half_scales",
        "fp4_g16",
        "fp8",
        "a4_fp4",
        "folded_float_activations",
        "nf4",
        "nf4_g64_half_scales",
        "mxfp4",
        "nvfp4",
        "nvfp4_a8",
        "folded_nf4_tensor",
        "silu_float",
    }


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
@pytest.mark.parametrize("rows", [1, 31, 33, 401])
@pytest.mark.parametrize("k", [33, 100, 401])
def test_agrees_with_the_reference(case: Case, rows: int, k: int) -> None:
    x, named = build(case, rows, k)
    call = MatmulCall(x, **named)
    if refusal("qmatmul", call.facts()):
        assert (case.name, k) == ("both_zero_points", 33) or case.attributes.get("act_group")
        return
    y, expected = torch_int8.matmul(call), reference.matmul(call)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    assert float((y - expected).norm() / expected.norm()) <= 1e-6
    assert float((y - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("n", [1, 5, 300])
@pytest.mark.parametrize("k", [1, 2, 31, 65])
def test_awkward_widths(n: int, k: int) -> None:
    for spec in (WeightSpec("int8"), WeightSpec("int4", "group", 32, symmetric=False)):
        x, named = build(Case("", spec, {"act_format": "int8"}, ("bias",)), 33, k, n)
        call = MatmulCall(x, **named)
        assert not refusal("qmatmul", call.facts())
        torch.testing.assert_close(torch_int8.matmul(call), reference.matmul(call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", INTEGER_ONLY, ids=lambda case: case.name)
def test_a_row_does_not_depend_on_its_place_in_the_batch(case: Case) -> None:
    x, named = build(case, 401)
    if "mode" in named:  # equal scales fold completely, without a floating-point rest
        scales = scale_values(named["scales"], named.pop("global_scale", None))
        named["scales"] = scales.amax(1, keepdim=True).expand(scales.shape).contiguous()
    y = torch_int8.matmul(MatmulCall(x, **named))
    for rows in (slice(0, 1), slice(7, 40), slice(400, 401)):
        assert torch.equal(torch_int8.matmul(MatmulCall(x[rows], **named)), y[rows])
    flipped = torch_int8.matmul(MatmulCall(x.flip(0), **named))
    assert torch.equal(flipped.flip(0), y)


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "w4g32_a8")
    call = MatmulCall(*build(case, 401)[:1], **build(case, 401)[1])
    y = torch_int8.matmul(call)
    monkeypatch.setattr(torch_int8, "_TILE", 1)
    assert torch.equal(torch_int8.matmul(call), y)


def test_half_precision_and_leading_axes() -> None:
    x, named = build(CASES[7])
    y = torch_int8.matmul(MatmulCall(x.half().reshape(3, 11, 100), **named))
    assert y.dtype == torch.float16 and y.shape == (3, 11, 37)
    assert torch.equal(y.reshape(33, 37), torch_int8.matmul(MatmulCall(x.half().float(), **named)).half())
    assert torch_int8.matmul(MatmulCall(x[:0], **named)).shape == (0, 37)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"device": "cuda"}, "on the CPU only"),
        ({"act_format": "none"}, "activations are floating point"),
        ({"act_format": "fp8_e4m3"}, "fp8_e4m3 activations are not integers"),
        ({"table": True}, "code table"),
        ({"table": True, "table_is_whole": True}, ""),
        ({"table": True, "folds": True}, ""),
        ({"scale_blocks": 8, "block_size": 16}, "scales change every 16 positions"),
        ({"scale_blocks": 4, "block_size": 32}, ""),
        ({"scale_blocks": 2, "block_size": 64, "act_group": 48}, "do not nest"),
        ({"act_group": 16}, "scales change every 16 positions"),
        ({"k": 40_000, "block_size": 40_000}, "could overflow 32 bits"),
        ({"k": 40_000, "block_size": 64, "scale_blocks": 625}, ""),
    ],
)
def test_refusals_have_reasons(change: dict[str, int | str], reason: str) -> None:
    given: dict[str, Any] = {"k": 128, "n": 64, "bits": 4, "block_size": 128, "act_format": "int8", **change}
    got = refusal("qmatmul", Facts(**given))
    assert (reason in got) if reason else not got


def test_convolutions_are_refused() -> None:
    facts = Facts(k=128, n=64, bits=8, block_size=128, act_format="int8")
    assert "no integer path" in refusal("qconv2d", facts)


def test_a_machine_whose_integer_matmul_saturates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_int8, "int_mm_is_exact", lambda: False)
    assert "not exact" in refusal("qmatmul", Facts(k=128, n=64, bits=8, block_size=128, act_format="int8"))


@pytest.mark.parametrize("m", [1, 2, 16, 17, 33])
@pytest.mark.parametrize("k", [1, 2, 3, 31, 64, 401])
@pytest.mark.parametrize("n", [1, 5, 16, 33])
def test_integer_products_are_exact(m: int, k: int, n: int) -> None:
    generator = torch.Generator().manual_seed(m * k * n)
    a = torch.randint(-128, 128, (m, 2 * k), dtype=torch.int8, generator=generator)[:, k:]
    b = torch.randint(-128, 128, (n, 2 * k), dtype=torch.int8, generator=generator)[:, :k].t()
    assert torch.equal(int_product(a, b).double(), a.double() @ b.double())
    extreme = torch.full((m, k), -128, dtype=torch.int8)
    assert int_product(extreme, torch.full((k, n), -128, dtype=torch.int8)).eq(16384 * k).all()
