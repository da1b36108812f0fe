"""Range search of weights, against a search written out block by block."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.errors import FormatError
from compress.formats import Scales, WeightSpec, quantize_weight, scale_shape, scale_values, weight_scales
from compress.formats.codebook import ScaleDtype
from compress.formats.scales import Granularity
from compress.quantize import ranges
from compress.quantize.ranges import RangeSearch, search_scales

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "group")
SCALE_DTYPES: tuple[ScaleDtype, ...] = ("float32", "float16")
SPECS = [
    WeightSpec(f"int{bits}", granularity, 8 if granularity == "group" else None, symmetric, dtype)
    for bits, granularity, symmetric, dtype in itertools.product((2, 4, 8), GRANULARITIES, (True, False), SCALE_DTYPES)
]


def _weight(shape: tuple[int, ...] = (6, 3, 3, 3), seed: int = 0) -> Tensor:
    """Rows of different size; one of zeros, one all positive, one all negative, one with an outlier."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight *= torch.logspace(-3, 1, len(weight)).reshape(-1, *(1 for _ in shape[1:]))
    weight[1], weight[2], weight[3] = 0, weight[2].abs(), -weight[3].abs()
    weight[4].view(-1)[5] *= 20
    return weight


def _block_errors(weight: Tensor, spec: WeightSpec, given: Scales, norm: float) -> Tensor:
    """Error of every block, summed in float64 from the decoded weight, in the scales' shape."""
    decoded = quantize_weight(weight, spec, given.scales, given.zero_points).dequantize()
    errors = (weight.double() - decoded.double()).abs().pow(norm).flatten(1)
    if spec.granularity == "tensor":
        return errors.sum().reshape(1, 1)
    parts = torch.split(errors, spec.block_size(errors.shape[1]), dim=1)
    return torch.stack([part.sum(1) for part in parts], dim=1)


def _candidates(weight: Tensor, spec: WeightSpec, search: RangeSearch) -> list[Scales]:
    """Every candidate from its definition: the ends of the range times the factor, and what is stored for them."""
    rows, shape = weight.reshape(len(weight), -1), scale_shape(tuple(weight.shape), spec)
    blocks = (rows,) if spec.granularity == "tensor" else torch.split(rows, spec.block_size(rows.shape[1]), dim=1)
    dims = (0, 1) if spec.granularity == "tensor" else (1,)
    high = torch.stack([b.amax(dims).reshape(-1) for b in blocks], 1).clamp_min(0).reshape(shape)
    low = torch.stack([b.amin(dims).reshape(-1) for b in blocks], 1).clamp_max(0).reshape(shape)
    bits = spec.number_format.bits
    extent = torch.maximum(high, -low) / (2 ** (bits - 1) - 1) if spec.symmetric else (high - low) / (2**bits - 1)
    extent = torch.where(extent == 0, 1.0, extent)
    found = []
    for factor in search.factors():
        scales = (extent * factor).to(spec.torch_scale_dtype) if factor < 1 else weight_scales(weight, spec).scales
        zero = None if spec.symmetric else (-low * factor / scales.float()).round().clamp(0, 2**bits - 1)
        found.append(Scales(scales, zero))
    return found


@pytest.mark.parametrize("norm", [2.0, 2.4])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.format}-{s.granularity}-{s.symmetric}-{s.scale_dtype}")
def test_the_found_range_is_the_best_of_all(spec: WeightSpec, norm: float) -> None:
    weight, search = _weight(), RangeSearch(norm=norm, steps=30, shrink=0.03)
    found = search_scales(weight, spec, search)
    best = torch.stack([_block_errors(weight, spec, c, norm) for c in _candidates(weight, spec, search)]).amin(0)
    # The full range's float16 scale may be one step up (weight_scales), and then another candidate wins by a hair.
    slack = 1.0 + (5e-3 if spec.scale_dtype == "float16" else 1e-5)
    assert (_block_errors(weight, spec, found, norm) <= best * slack + 1e-30).all()
    assert (
        _block_errors(weight, spec, found, norm) <= _block_errors(weight, spec, weight_scales(weight, spec), norm)
    ).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.format}-{s.granularity}-{s.symmetric}-{s.scale_dtype}")
def test_what_is_found_can_be_stored(spec: WeightSpec) -> None:
    weight = _weight((5, 21))
    found = search_scales(weight, spec, RangeSearch())
    assert found.scales.dtype == spec.torch_scale_dtype
    assert tuple(found.scales.shape) == scale_shape((5, 21), spec)
    assert (found.values() > 0).all()
    assert (found.zero_points is None) == spec.symmetric
    zeros = quantize_weight(torch.zeros(5, 21), spec, found.scales, found.zero_points).dequantize()
    assert not zeros.any()  # the range holds zero
    if found.zero_points is not None:
        assert found.zero_points.dtype == torch.uint8
        assert int(found.zero_points.max()) < 2**spec.number_format.bits


@pytest.mark.parametrize("symmetric", [True, False])
def test_exactly_the_scales_of_the_best_candidate(symmetric: bool) -> None:
    spec, weight = WeightSpec("int4", symmetric=symmetric), _weight((6, 400))
    search = RangeSearch(steps=40, shrink=0.02)
    candidates = _candidates(weight, spec, search)
    errors = torch.stack([_block_errors(weight, spec, c, 2.4) for c in candidates])[..., 0]
    found = search_scales(weight, spec, search)
    for row, best in enumerate(errors.argmin(0).tolist()):
        assert found.scales[row] == candidates[best].scales[row]
        zero_points = candidates[best].zero_points
        if found.zero_points is not None and zero_points is not None:
            assert found.zero_points[row] == zero_points[row]
    assert len(set(errors.argmin(0).tolist())) > 3


def test_of_equal_errors_the_widest_range_wins() -> None:
    spec = WeightSpec("int8")
    weight = torch.zeros(2, 8)
    assert torch.equal(search_scales(weight, spec, RangeSearch()).scales, torch.ones(2, 1))
    # Whole numbers up to 127 have no error at the full range.
    weight[0] = torch.tensor([127.0, -127, 3, 5, 9, 0, 64, 1])
    assert search_scales(weight, spec, RangeSearch()).scales[0] == 1.0


def test_one_sided_weights_use_every_code() -> None:
    weight = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)) + 0.5
    spec = WeightSpec("int4", symmetric=False)
    found = search_scales(torch.cat([weight, -weight]), spec, RangeSearch())
    assert found.zero_points is not None
    assert found.zero_points.flatten().tolist() == [0, 0, 0, 15, 15, 15]
    full = weight.amax(1) / 15
    assert (found.scales[:3, 0] <= full).all()
    assert (found.scales[:3, 0] > 0.9 * full).all()


def test_equal_weights_are_kept_exactly() -> None:
    weight = torch.full((2, 10), -0.37)
    for spec in (WeightSpec("int4"), WeightSpec("int4", symmetric=False)):
        found = search_scales(weight, spec, RangeSearch())
        decoded = quantize_weight(weight, spec, found.scales, found.zero_points).dequantize()
        assert torch.allclose(decoded, weight, rtol=1e-6)


def test_the_full_range_of_kind_max_and_of_a_single_step() -> None:
    weight = _weight()
    for spec in (*SPECS, WeightSpec("nf4"), WeightSpec.natural("mxfp4")):
        full = weight_scales(weight, spec)
        found = search_scales(weight, spec, RangeSearch(kind="max"))
        assert torch.equal(scale_values(found.scales), scale_values(full.scales))
        if spec.number_format.kind == "int":
            one = search_scales(weight, spec, RangeSearch(steps=1))
            assert torch.equal(one.scales, full.scales)
            assert full.zero_points is None or torch.equal(one.zero_points, full.zero_points)  # type: ignore[arg-type]


def test_ptq4dm_thresholds_are_hundredths_of_the_largest_magnitude() -> None:
    factors = RangeSearch(steps=100).factors()
    assert factors == pytest.approx([i / 100 for i in range(100, 0, -1)])
    assert len(RangeSearch().factors()) == 80
    assert min(RangeSearch().factors()) == pytest.approx(0.21)


def test_the_error_at_eight_bits_is_below_the_full_range_s() -> None:
    weight, spec = torch.randn(16, 256, generator=torch.Generator().manual_seed(2)), WeightSpec("int8")
    found = search_scales(weight, spec, RangeSearch(steps=100))
    before = _block_errors(weight, spec, weight_scales(weight, spec), 2.4)
    after = _block_errors(weight, spec, found, 2.4)
    assert (after <= before).all()
    assert float(after.sum()) < float(before.sum())


@pytest.mark.parametrize("spec", [s for s in SPECS if s.granularity != "tensor"], ids=str)
def test_memory_chunks_change_nothing(spec: WeightSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _weight((7, 40))
    whole = search_scales(weight, spec, RangeSearch())
    monkeypatch.setattr(ranges, "CHUNK", 100)
    parts = search_scales(weight, spec, RangeSearch())
    assert torch.equal(whole.scales, parts.scales)
    assert whole.zero_points is None or torch.equal(whole.zero_points, parts.zero_points)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_float16_cannot_hold_stay_whole(symmetric: bool) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 1e-9
    spec = WeightSpec("int4", "group", 16, symmetric, "float16")
    found, full = search_scales(weight, spec, RangeSearch()), weight_scales(weight, spec)
    assert torch.equal(found.scales, full.scales)
    assert full.zero_points is None or torch.equal(found.zero_points, full.zero_points)  # type: ignore[arg-type]


def test_tiny_weights_have_errors_too() -> None:
    spec, weight = WeightSpec("int4"), _weight()
    small = search_scales(weight * 2.0**-60, spec, RangeSearch())
    expected = search_scales(weight, spec, RangeSearch()).scales * 2.0**-60
    expected[1] = 1.0  # the row of zeros
    assert torch.equal(small.scales, expected)


def test_errors() -> None:
    with pytest.raises(FormatError, match="not finite"):
        search_scales(torch.tensor([[1.0, float("nan")]]), WeightSpec("int4"), RangeSearch())
    with pytest.raises(FormatError, match="no integer format"):
        search_scales(torch.ones(2, 4), WeightSpec("nf4"), RangeSearch())
    with pytest.raises(ValidationError, match="shrink the range to nothing"):
        RangeSearch(steps=101)
