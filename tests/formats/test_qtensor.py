import dataclasses
from typing import Any

import pytest
import torch

from compress.errors import FormatError
from compress.formats import QTensor, Scales, WeightSpec, decode, encode, pack_weight, quantize_weight, stored_scales
from compress.formats.qtensor import decode_packed


def _weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_known_bytes() -> None:
    weight = torch.tensor([[1.0, -2.0, 7.0, -8.0]])
    q = quantize_weight(weight, WeightSpec("int4"), scales=torch.tensor([[1.0]]))
    assert q.codes.tolist() == [[[0x69, 0x0F]]]  # u = value + 8: 9, 6, 15, 0
    assert torch.equal(q.dequantize(), weight)
    fp4 = quantize_weight(torch.tensor([[0.1, -0.3, 1.0, 7.0]]), WeightSpec("fp4_e2m1"), torch.tensor([[1.0]]))
    assert bytes(fp4.codes.flatten().tolist()).hex() == "9072"
    assert fp4.dequantize().tolist() == [[0.0, -0.5, 1.0, 6.0]]


def test_half_steps_go_to_the_even_value() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_weight(weight, WeightSpec("int4"), torch.ones(1, 1)).dequantize().tolist() == [[0, 2, 2, -0.0, -2]]


def test_given_scales_and_zero_points_are_used_and_rounded_to_their_type() -> None:
    spec = WeightSpec("int4", "group", 3, symmetric=False, scale_dtype="float16")
    weight = _weight(2, 5)
    q = quantize_weight(weight, spec, torch.full((2, 2), 0.1), torch.full((2, 2), 5.0))
    assert q.scales.dtype == torch.float16 and q.zero_points is not None and q.zero_points.dtype == torch.uint8
    expected = ((weight / q.scales.float()[0, 0]).round() + 5).clamp(0, 15)
    assert torch.equal(q.dequantize(), (expected - 5) * q.scales.float()[0, 0])


@pytest.mark.parametrize(
    ("scales", "zeros", "message"),
    [
        (torch.ones(1, 1), None, r"scales are torch.float32 \[1, 1\], not float32 \[2, 1\]"),
        (torch.zeros(2, 1), None, "must be positive"),
        (torch.full((2, 1), torch.nan), None, "must be positive"),
        (torch.ones(2, 1), torch.zeros(2, 1), "symmetric=True with zero points"),
        (torch.ones(2, 1), torch.full((2, 1), 0.5), "whole numbers from 0 to 15"),
        (torch.ones(2, 1), torch.full((2, 1), 16), "whole numbers from 0 to 15"),
        (None, torch.zeros(2, 1), "zero points without scales"),
    ],
)
def test_wrong_scales_are_refused(scales: torch.Tensor | None, zeros: torch.Tensor | None, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        quantize_weight(_weight(2, 5), WeightSpec("int4"), scales, zeros)


@pytest.mark.parametrize(
    ("name", "scales", "whole", "message"),
    [
        ("mxfp4", torch.ones(2, 1), torch.ones(1), "mxfp4 with a global scale"),
        ("mxfp4", torch.zeros(2, 1), None, "must be positive and finite as e8m0"),
        ("mxfp4", -torch.ones(2, 1), None, "must be positive and finite as e8m0"),
        ("mxfp4", torch.full((2, 1), 255, dtype=torch.uint8), None, "must be positive and finite as e8m0"),
        ("nvfp4", torch.ones(2, 1), None, "nvfp4 without its global scale"),
        ("nvfp4", torch.ones(2, 1), torch.ones(2), r"the global scale is \[2\], not \[1\]"),
        ("nvfp4", torch.ones(2, 1), torch.zeros(1), "global scale must be positive and finite"),
        ("nvfp4", torch.full((2, 1), 500.0), torch.ones(1), "must be positive and finite as e4m3"),
        ("nvfp4", torch.full((2, 1), 1e-4), torch.ones(1), "must be positive and finite as e4m3"),
    ],
)
def test_wrong_scales_of_formats_with_their_own_types_are_refused(
    name: str, scales: torch.Tensor, whole: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        quantize_weight(_weight(2, 5), WeightSpec.natural(name), scales, global_scale=whole)


def test_given_scales_of_any_type_are_stored_in_the_formats() -> None:
    weight = _weight(2, 20)
    mx = quantize_weight(weight, WeightSpec.natural("mxfp4"), torch.full((2, 1), 0.3))
    assert mx.scales.tolist() == [[125], [125]]
    exponents = quantize_weight(weight, mx.spec, mx.scales)
    assert torch.equal(exponents.codes, mx.codes) and torch.equal(exponents.scales, mx.scales)
    nv = quantize_weight(weight, WeightSpec.natural("nvfp4"), torch.full((2, 2), 7.1), global_scale=torch.tensor([0.1]))
    assert nv.scales.float().tolist() == [[7.0, 7.0], [7.0, 7.0]]
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    steps = nv.dequantize().abs() / (torch.tensor(7.0) * torch.tensor(0.1))
    assert bool((steps[..., None] - values).abs().amin(-1).lt(1e-6).all())


def test_asymmetric_scales_need_zero_points_of_their_shape() -> None:
    spec = WeightSpec("int4", symmetric=False)
    with pytest.raises(FormatError, match="symmetric=False without zero points"):
        quantize_weight(_weight(2, 5), spec, torch.ones(2, 1))
    with pytest.raises(FormatError, match=r"zero points are \[1, 1\], not \[2, 1\]"):
        quantize_weight(_weight(2, 5), spec, torch.ones(2, 1), torch.ones(1, 1, dtype=torch.uint8))


def test_weights_that_are_not_finite_are_refused_with_given_scales_too() -> None:
    weight = _weight(2, 5)
    weight[0, 0] = torch.nan
    with pytest.raises(FormatError, match="not finite"):
        quantize_weight(weight, WeightSpec("int8"), torch.ones(2, 1))


def test_codes_of_another_rounding_pack_to_the_same_thing() -> None:
    spec = WeightSpec("int3", "group", 4, symmetric=False)
    weight = _weight(3, 11)
    q = quantize_weight(weight, spec)
    codes = encode(weight, q.scales, q.zero_points, spec)
    again = pack_weight(codes, Scales(q.scales, q.zero_points), (3, 11), spec)
    assert torch.equal(again.codes, q.codes)
    assert torch.equal(decode(codes, q.scales, q.zero_points, spec), q.dequantize())


def test_stored_scales_keep_uint8_zero_points() -> None:
    zero = torch.tensor([[3], [4]], dtype=torch.uint8)
    spec = WeightSpec("int4", symmetric=False)
    assert stored_scales(torch.ones(2, 1), zero, (2, 5), spec).zero_points is zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_type(dtype: torch.dtype) -> None:
    weight = _weight(3, 5).to(dtype).requires_grad_()
    q = quantize_weight(weight, WeightSpec("int8"))
    assert torch.equal(q.dequantize(), quantize_weight(weight.detach().float(), WeightSpec("int8")).dequantize())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 40)}, "needs uint8"),
        ({"codes": torch.zeros(3, 1, 5)}, "codes are torch.float32"),
        ({"scales": torch.ones(3, 1, dtype=torch.float16)}, "not float32"),
        ({"zero_points": torch.ones(3, 1, dtype=torch.uint8)}, "symmetric=True with zero points"),
    ],
)
def test_inconsistent_parts_are_refused(change: dict[str, Any], message: str) -> None:
    q = quantize_weight(_weight(3, 9), WeightSpec("int4"))
    with pytest.raises(FormatError, match=message):
        dataclasses.replace(q, **change)


def test_decoding_packed_blocks_is_dequantize() -> None:
    q: QTensor = quantize_weight(_weight(3, 4, 3, 3), WeightSpec("fp4_e2m1", "group", 16))
    table = q.spec.number_format.table()
    blocks = decode_packed(q.codes, Scales(q.scales, q.zero_points), table, bits=4, block_size=16)
    assert blocks.shape == (3, 3, 16)
    assert torch.equal(blocks.flatten(1)[:, :36].reshape(3, 4, 3, 3), q.dequantize())
