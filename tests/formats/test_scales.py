from math import prod
from typing import Any

import pytest
import torch

from compress.errors import FormatError
from compress.formats import WeightSpec, code_shape, predicted_bytes, scale_shape, weight_scales


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
        ({"format": "int4", "scale_dtype": "bfloat16"}, "is not float32 or float16"),
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
    scales, zero_points = weight_scales(weight, WeightSpec("int4", symmetric=False))
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
