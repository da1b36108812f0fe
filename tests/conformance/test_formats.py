"""What every weight format keeps to, at every granularity, with and without zero points, and at awkward sizes."""

import itertools

import pytest
import torch

from compress.formats import FORMATS, WeightSpec, decode, encode, predicted_bytes, quantize_weight, unpack_codes
from compress.formats.codebook import ScaleDtype
from compress.formats.layout import from_blocks
from compress.formats.scales import Granularity
from compress.kernels import reference

LAYOUTS: tuple[tuple[Granularity, int | None], ...] = (
    ("tensor", None),
    ("channel", None),
    ("group", 1),
    ("group", 16),
    ("group", 32),
    ("group", 33),
    ("group", 1000),
)
DTYPES: tuple[ScaleDtype, ...] = ("float32", "float16")
SPECS = [
    WeightSpec(fmt.name, granularity, group, symmetric, dtype)
    for fmt, (granularity, group), symmetric, dtype in itertools.product(
        FORMATS.values(), LAYOUTS, (True, False), DTYPES
    )
    if fmt.signed and fmt.layout is None and (symmetric or fmt.kind == "int")
]
SPECS += [WeightSpec.natural(fmt.name) for fmt in FORMATS.values() if fmt.layout]
SHAPES = ((1, 1), (3, 31), (2, 32), (3, 33), (2, 401), (4, 5, 3, 3))


def _name(spec: WeightSpec) -> str:
    zero = "" if spec.symmetric else "-asymmetric"
    return f"{spec.format}-{spec.granularity}{spec.group or ''}{zero}-{spec.scale_dtype}"


every_spec = pytest.mark.parametrize("spec", SPECS, ids=_name)


def _weights(shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator) * 0.05
    holed = normal.clone().flatten(1)
    holed[:, :17] = 0
    spread = normal * torch.logspace(-4, 4, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return [normal, normal.abs() + 0.1, -normal.abs(), torch.zeros(shape), holed.reshape(shape), spread]


@every_spec
def test_bytes_are_predicted_from_the_shape(spec: WeightSpec) -> None:
    for shape in SHAPES:
        q = quantize_weight(_weights(shape)[0], spec)
        zero = 0 if q.zero_points is None else q.zero_points.numel()
        whole = 4 if q.global_scale is not None else 0
        parts = (q.codes.numel(), q.scales.numel() * q.scales.element_size() + whole, zero)
        assert tuple(predicted_bytes(shape, spec)) == parts
        assert q.bytes() == predicted_bytes(shape, spec).total == sum(parts)


@every_spec
def test_quantizing_the_decoded_weight_under_its_scales_changes_nothing(spec: WeightSpec) -> None:
    for shape in SHAPES:
        for weight in _weights(shape):
            q = quantize_weight(weight, spec)
            again = quantize_weight(q.dequantize(), spec, *q.all_scales)
            assert torch.equal(again.codes, q.codes)
            assert torch.equal(again.dequantize(), q.dequantize())


@every_spec
def test_error_is_at_most_half_a_step(spec: WeightSpec) -> None:
    for shape in SHAPES:
        for weight in _weights(shape):
            q = quantize_weight(weight, spec)
            block = spec.block_size(weight[0].numel())
            scales = q.all_scales.values().double().expand(q.codes.shape[:2])
            scale = scales.repeat_interleave(block, 1)[:, : weight[0].numel()]
            w = weight.double().flatten(1)
            error = (q.dequantize().double().flatten(1) - w).abs()
            allowed = scale * _half_step(w / scale, spec)
            if spec.scale_dtype == "e8m0":  # MX lets what lies between the largest value and the next octave saturate
                allowed = torch.maximum(allowed, w.abs() - scale * spec.number_format.max_value)
                assert bool((w.abs() < scale * 8).all())
            assert bool((error <= allowed * (1 + 1e-4) + 1e-30).all())


def _half_step(ratio: torch.Tensor, spec: WeightSpec) -> torch.Tensor:
    """Half the gap of the grid around each value; 0.5 for integers."""
    table = spec.number_format.table()
    if table is None:
        return torch.full_like(ratio, 0.5)
    grid = torch.tensor(sorted(set(table.tolist())), dtype=torch.float64)
    above = torch.bucketize(ratio.clamp(float(grid[0]), float(grid[-1])), grid).clamp(1, len(grid) - 1)
    half: torch.Tensor = (grid[above] - grid[above - 1]) / 2
    return half


@every_spec
def test_zeros_decode_to_zeros(spec: WeightSpec) -> None:
    for shape in SHAPES:
        assert torch.equal(quantize_weight(torch.zeros(shape), spec).dequantize(), torch.zeros(shape))
        q = quantize_weight(_weights(shape)[4], spec)
        assert bool((q.dequantize().flatten(1)[:, :17] == 0).all())


@every_spec
def test_codes_unpack_to_what_was_encoded_and_padding_is_zero_bits(spec: WeightSpec) -> None:
    for shape in SHAPES:
        weight = _weights(shape)[0]
        rows = weight.flatten(1)
        q = quantize_weight(weight, spec)
        codes = encode(rows, q.scales, q.zero_points, spec, q.global_scale)
        blocks = unpack_codes(q.codes, spec.number_format.bits, spec.block_size(rows.shape[1]))
        assert torch.equal(from_blocks(blocks, rows.shape[1]), codes)
        assert not blocks.flatten(1)[:, rows.shape[1] :].any()
        decoded = decode(codes, q.scales, q.zero_points, spec, q.global_scale)
        assert torch.equal(decoded.reshape(shape), q.dequantize())


@every_spec
def test_strides_do_not_matter(spec: WeightSpec) -> None:
    weight = _weights((33, 7))[0].T
    q, plain = quantize_weight(weight, spec), quantize_weight(weight.contiguous(), spec)
    assert torch.equal(q.codes, plain.codes) and torch.equal(q.all_scales.values(), plain.all_scales.values())
    images = _weights((4, 5, 3, 3))[0].to(memory_format=torch.channels_last)
    assert torch.equal(quantize_weight(images, spec).codes, quantize_weight(images.contiguous(), spec).codes)


@every_spec
def test_every_value_is_finite_at_the_ends_of_float32(spec: WeightSpec) -> None:
    if spec.scale_dtype != "float16":
        weight = torch.tensor([[1e-45, -1e-40, 3e-38], [1e37, -1e37, 1e-37]])
        assert bool(torch.isfinite(quantize_weight(weight, spec).dequantize()).all())
    else:
        weight = torch.tensor([[1e-9, -1e-8, 3e-8], [3e4, -3e4, 1e-7]])
        assert bool(torch.isfinite(quantize_weight(weight, spec).dequantize()).all())


@every_spec
def test_the_operator_multiplies_with_exactly_dequantize(spec: WeightSpec) -> None:
    for shape in SHAPES[:-1]:
        q = quantize_weight(_weights(shape)[0], spec)
        identity = torch.eye(shape[1])
        y = reference.qmatmul(
            identity,
            q.codes,
            q.scales,
            q.zero_points,
            spec.number_format.table(),
            global_scale=q.global_scale,
            bits=spec.number_format.bits,
            block_size=spec.block_size(shape[1]),
        )
        assert torch.equal(y.T, q.dequantize())
