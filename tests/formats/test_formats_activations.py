import pytest
import torch

from compress.errors import FormatError
from compress.formats import dynamic_scale, get_format, integer_codes, quantize_dequantize


def _x() -> torch.Tensor:
    return torch.randn(3, 33, 17, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"])
def test_dynamic_scale_maps_the_extreme_to_the_largest_value(name: str) -> None:
    x, fmt = _x(), get_format(name)
    x[1, 5] = 0
    scale = dynamic_scale(x, fmt, (-1,))
    assert scale.shape == (3, 33, 1) and float(scale[1, 5]) == 1.0
    y = quantize_dequantize(x, fmt, scale)
    torch.testing.assert_close(y.abs().amax(-1), x.abs().amax(-1), rtol=1e-6, atol=0)
    assert torch.equal(y[1, 5], torch.zeros(17))


@pytest.mark.parametrize("name", ["int8", "int4", "uint8", "uint4"])
def test_integer_error_is_half_a_step(name: str) -> None:
    fmt = get_format(name)
    x = _x() if fmt.signed else _x().abs()
    scale = dynamic_scale(x, fmt, (1, 2))
    error = (quantize_dequantize(x, fmt, scale) - x).abs()
    assert bool((error <= scale * (0.5 + 1e-5)).all())


def test_zero_point_shifts_an_unsigned_range() -> None:
    x = torch.tensor([-1.0, 0.0, 0.26, 3.0, 9.0])
    y = quantize_dequantize(x, get_format("uint4"), torch.tensor(0.5), torch.tensor(2.0))
    assert y.tolist() == [-1.0, 0.0, 0.5, 3.0, 6.5]
    assert integer_codes(x, get_format("uint4"), torch.tensor(0.5), torch.tensor(2.0)).tolist() == [0, 2, 3, 8, 15]


def test_unsigned_formats_cut_negative_values() -> None:
    assert quantize_dequantize(torch.tensor([-3.0, 2.0]), get_format("uint8"), torch.tensor(1.0)).tolist() == [0, 2]


def test_broken_rows_stay_broken() -> None:
    x = _x()[0]
    x[3, 2] = torch.nan
    y = quantize_dequantize(x, get_format("int8"), dynamic_scale(x, get_format("int8"), (-1,)))
    assert bool(y[3].isnan().all()) and bool(torch.isfinite(y[torch.arange(33) != 3]).all())


def test_inputs_are_left_alone() -> None:
    x = _x()
    kept = x.clone()
    for name in ("int8", "fp8_e4m3", "fp4_e2m1"):
        quantize_dequantize(x, get_format(name), torch.tensor(1.0))
    assert torch.equal(x, kept)


def test_refusals() -> None:
    with pytest.raises(FormatError, match="fp4_e2m1 has no zero points"):
        quantize_dequantize(_x(), get_format("fp4_e2m1"), torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(FormatError, match="not an integer format"):
        integer_codes(_x(), get_format("fp8_e5m2"), torch.tensor(1.0))
