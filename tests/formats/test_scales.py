from math import prod
from typing import Any

import pytest
import torch

from compress.errors import FormatError
from compress.formats import (
    WeightSpec,
    as_stored,
    code_shape,
    predicted_bytes,
    scale_shape,
    scale_values,
    weight_scales,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "int5"}, "there is no number format"),
        ({"format": "uint8"}, "use int8 with symmetric=False"),
        ({"format": "fp4_e2m1", "symmetric": False}, "has no zero points"),
        ({"format": "int4", "granularity": "group"}, "they go together"),
        ({"format": "int4", "granularity": "channel", "group": 8}, "they go together"),
        ({"format": "int4", "granularity": "group", "group": 0}, "at least 1"),
        ({"format": "int4", "granularity": "row"}, "is not tensor, channel or group"),
        ({"format": "int4", "scale_dtype": "bfloat16"}, "is not float32, float16, e8m0, e4m3"),
        ({"format": "int4", "granularity": "group", "group": 32, "scale_dtype": "e8m0"}, "int4 has no e8m0 scales"),
        ({"format": "mxfp4"}, r"groups of 32 with e8m0 scales, not channel .*use WeightSpec.natural\('mxfp4'\)"),
        ({"format": "nvfp4", "granularity": "group", "group": 16}, "groups of 16 with e4m3 scales"),
    ],
)
def test_specs_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        WeightSpec(**fields)


def test_shapes_and_bytes_by_hand() -> None:
    spec = WeightSpec("int3", "group", 32, symmetric=False, scale_dtype="float16")
    assert spec.block_size(100) == 32 and spec.block_size(20) == 20
    assert code_shape((5, 100), spec) == (5, 4, 12) and scale_shape((5, 100), spec) == (5, 4)
    assert predicted_bytes((5, 100), spec) == (5 * 4 * 12, 5 * 4 * 2, 5 * 4)
    assert predicted_bytes((5, 100), spec).total == 300
    assert predicted_bytes((8, 4, 3, 3), WeightSpec("int4", "tensor")) == (8 * 18, 4, 0)
    assert predicted_bytes((8, 4, 3, 3), WeightSpec("fp8_e4m3")) == (8 * 36, 8 * 4, 0)


def test_bytes_of_formats_with_their_own_scales() -> None:
    assert predicted_bytes((8, 100), WeightSpec.natural("mxfp4")) == (8 * 4 * 16, 8 * 4, 0)
    assert predicted_bytes((8, 100), WeightSpec.natural("nvfp4")) == (8 * 7 * 8, 8 * 7 + 4, 0)
    bits = [predicted_bytes((64, 64), WeightSpec.natural(name)).total * 8 / 4096 for name in ("mxfp4", "nvfp4")]
    assert bits == [4.25, 4.5 + 32 / 4096]


def test_natural_is_the_formats_own_layout() -> None:
    assert WeightSpec.natural("mxfp4") == WeightSpec("mxfp4", "group", 32, True, "e8m0")
    assert WeightSpec.natural("nvfp4") == WeightSpec("nvfp4", "group", 16, True, "e4m3")
    assert WeightSpec.natural("int4") == WeightSpec("int4")
    assert [WeightSpec.natural(name).has_global_scale for name in ("mxfp4", "nvfp4", "nf4")] == [False, True, False]


@pytest.mark.parametrize(
    ("amax", "exponent"),
    [(4.0, 0), (7.99, 0), (8.0, 1), (3.99, -1), (1.0, -2), (6.0, 0), (2.0**-125, -127), (1e-45, -127), (3e38, 125)],
)
def test_mx_scales_are_the_exponent_of_the_extreme_less_that_of_an_element(amax: float, exponent: int) -> None:
    weight = torch.zeros(1, 40)
    weight[0, 7] = -amax
    scales, _, whole = weight_scales(weight, WeightSpec.natural("mxfp4"))
    assert whole is None and scales.dtype == torch.uint8
    assert scales.tolist() == [[exponent + 127, 127]], "blocks of zeros have scale 1"


def test_nvfp4_scales_are_relative_to_the_tensors() -> None:
    weight = torch.zeros(2, 48)
    weight[0, 3], weight[0, 20], weight[1, 0] = 5.0, -2.5, 0.01
    scales, _, whole = weight_scales(weight, WeightSpec.natural("nvfp4"))
    assert whole is not None and whole.dtype == torch.float32
    assert whole.tolist() == [float(torch.tensor(5.0) / 2688)]
    assert scales.float().tolist() == [[448.0, 224.0, 1.0], [0.875, 1.0, 1.0]]
    torch.testing.assert_close(scale_values(scales, whole)[0, 0], torch.tensor(5.0 / 6))


def test_block_scales_too_small_for_e4m3_round_up_to_its_smallest() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 1000.0, 1e-5
    scales, _, whole = weight_scales(weight, WeightSpec.natural("nvfp4"))
    assert scales.view(torch.uint8).tolist() == [[0x7E, 0x01]]
    assert bool((scale_values(scales, whole) * 6.5 >= torch.tensor([[1000.0, 1e-5]])).all())


@pytest.mark.parametrize("magnitude", [1e-40, 1e-30, 1e-5, 1.0, 1e30, 1e38])
def test_nvfp4_never_clips_by_more_than_half_a_step(magnitude: float) -> None:
    """The last step, from 4 to 6, is 2 wide."""
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * magnitude
    weight *= torch.logspace(-6, 0, 50)[:, None]
    scales = weight_scales(weight, WeightSpec.natural("nvfp4"))
    extremes = weight.double().abs().reshape(50, 4, 16).amax(2)
    assert bool((extremes <= scales.values().double() * 7 * (1 + 1e-6)).all())


def test_stored_scales_mean_numbers() -> None:
    exponents = torch.tensor([[0, 1, 126, 127, 254, 255]], dtype=torch.uint8)
    values = scale_values(exponents)
    assert values[0, :5].tolist() == [2.0**-127, 2.0**-126, 0.5, 1.0, 2.0**127] and bool(values[0, 5].isnan())
    assert scale_values(torch.tensor([1.5, 448.0]).to(torch.float8_e4m3fn), torch.tensor([2.0])).tolist() == [
        3.0,
        896.0,
    ]
    assert scale_values(torch.tensor([0.1], dtype=torch.float16)).dtype == torch.float32


def test_scales_round_to_their_stored_type() -> None:
    mx, nv = WeightSpec.natural("mxfp4"), WeightSpec.natural("nvfp4")
    assert as_stored(torch.tensor([1.0, 1.49, 1.5, 3.0, 1e-45, 1e39]), mx).tolist() == [127, 127, 128, 129, 0, 255]
    assert as_stored(torch.tensor([1.06, 1.07, 448.0, 463.9]), nv).float().tolist() == [1.0, 1.125, 448.0, 448.0]
    assert bool(as_stored(torch.tensor([465.0]), nv).float().isnan())
    for spec in (mx, nv, WeightSpec("int4"), WeightSpec("int4", scale_dtype="float16")):
        once = as_stored(torch.rand(50) + 0.1, spec)
        assert once.dtype == spec.torch_scale_dtype
        assert as_stored(once, spec) is once
        assert torch.equal(scale_values(as_stored(scale_values(once), spec)), scale_values(once))


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), ()])
def test_shapes_that_cannot_be_quantized(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="cannot be quantized"):
        predicted_bytes(shape, WeightSpec("int8"))


def test_symmetric_scale_is_the_largest_magnitude_over_the_largest_value() -> None:
    weight = torch.tensor([[1.0, -14.0, 3.0], [0.0, 0.0, 0.0]])
    assert weight_scales(weight, WeightSpec("int4")).scales.tolist() == [[2.0], [1.0]]
    assert weight_scales(weight, WeightSpec("int4", "tensor")).scales.tolist() == [[2.0]]
    by_group = weight_scales(weight, WeightSpec("int4", "group", 2)).scales
    assert torch.equal(by_group, torch.tensor([[2.0, 3.0 / 7], [1.0, 1.0]]))


def test_asymmetric_range_contains_zero() -> None:
    weight = torch.tensor([[15.0, 30.0], [-30.0, -15.0], [-15.0, 15.0]])
    scales, zero_points, _ = weight_scales(weight, WeightSpec("int4", symmetric=False))
    assert scales.tolist() == [[2.0], [2.0], [2.0]]
    assert zero_points is not None and zero_points.tolist() == [[0], [15], [8]]


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("magnitude", [1e-7, 3e-6, 1e-4, 1e-2, 1.0, 1e3])
def test_float16_scales_never_clip_by_more_than_half_a_step(name: str, magnitude: float) -> None:
    weight = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * magnitude
    spec = WeightSpec(name, scale_dtype="float16")
    scales = weight_scales(weight, spec).scales
    assert scales.dtype == torch.float16
    reach = scales.double() * (spec.number_format.max_value + 0.5)
    assert bool((weight.double().abs().amax(1, keepdim=True) <= reach).all())


def test_tiny_weights_get_a_usable_scale() -> None:
    weight = torch.full((2, 3), 1e-44)
    for spec in (WeightSpec("int8"), WeightSpec("int8", scale_dtype="float16")):
        assert bool((weight_scales(weight, spec).scales > 0).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 1] = bad
    with pytest.raises(FormatError, match="not finite"):
        weight_scales(weight, WeightSpec("int8"))


def test_float16_overflow_names_the_remedy() -> None:
    with pytest.raises(FormatError, match="use float32 scales"):
        weight_scales(torch.full((2, 3), 1e6), WeightSpec("int4", scale_dtype="float16"))


def test_scales_have_the_predicted_shapes() -> None:
    weight = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    for spec in (WeightSpec("int8", "tensor"), WeightSpec("int8"), WeightSpec("int8", "group", 4)):
        shape = scale_shape((4, 3, 5), spec)
        assert weight_scales(weight, spec).scales.shape == shape
        assert prod(shape) * 4 == predicted_bytes((4, 3, 5), spec).scales
