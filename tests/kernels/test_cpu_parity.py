"""The C++ kernels against the reference: every instruction set, every kind of call, odd shapes, any thread count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from cpu_kernels import ISAS, PARITY, isa_in_use, needs_kernels, torch_threads
from kernel_cases import CASES, CONV_CASES, Case, build, build_conv
from torch import Tensor
from vq_cases import VQ_CASES, VQ_CONV_CASES, VqCase, build_vq, build_vq_conv

from compress.errors import FormatError
from compress.formats import scale_values
from compress.kernels import cpu_call, cpu_library, reference, torch_ops
from compress.kernels.backends import Reference, select
from compress.kernels.call import Call, ConvCall, MatmulCall
from compress.kernels.vq_call import VqConvCall, VqMatmulCall

assert torch_ops  # registers torch.ops.compress
pytestmark = needs_kernels
SHAPES = [(1, 100, 37), (31, 257, 65), (33, 128, 64), (401, 96, 130)]  # rows, k, n
BATCHES = [(1,), (3,)]
ALL: list[Case | VqCase] = [*CASES, *CONV_CASES, *VQ_CASES, *VQ_CONV_CASES]


def calls(case: Case | VqCase, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Call]:
    """The case in those shapes, or as convolutions of one and of three images."""
    make: Any
    kind: Any
    if isinstance(case, VqCase):
        make, kind = (build_vq_conv, VqConvCall) if case in VQ_CONV_CASES else (build_vq, VqMatmulCall)
    else:
        make, kind = (build_conv, ConvCall) if case in CONV_CASES else (build, MatmulCall)
    sizes = BATCHES if issubclass(kind, VqConvCall | ConvCall) else shapes
    return [kind(x, **named) for x, named in (make(case, *size) for size in sizes)]


def error(y: Tensor, expected: Tensor) -> float:
    """Relative to the norm of what is expected."""
    return float((y.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_parity_with_the_reference(case: Case | VqCase, isa: str) -> None:
    with isa_in_use(isa) as library, torch_threads(2):
        for call in calls(case):
            if library.refusal(call.name, call.facts()):
                continue
            y = library.compute(call)
            assert y.shape == call.output_shape and error(y, Reference()(call)) <= PARITY
            assert torch.equal(library.compute(call), y)


@pytest.mark.parametrize("isa", ISAS)
def test_what_the_library_leaves_to_others(isa: str) -> None:
    """Of the calls with whole numbers on both sides, on every instruction set."""
    with isa_in_use(isa) as library:
        asked = [call for case in ALL for call in calls(case, SHAPES[:1])[:1]]
        left = [case.name for case, call in zip(ALL, asked, strict=True) if _left(library, call)]
    assert left == ["both_zero_points", "conv_static", "conv_grouped", "conv_low_rank"]


def test_what_the_library_is_not_asked() -> None:
    """Every case without whole numbers on both sides, and why; all others are the library's own decision."""
    refused: dict[str, list[str]] = {}
    for case in ALL:
        call = calls(case, SHAPES[:1])[0]
        reason = cpu_call.refusal(call.name, call.facts())
        refused.setdefault(reason, []).append(case.name)
    assert len(refused.pop("")) > len(ALL) / 2
    assert refused == {
        "activations are floating point": [
            *("w4g32", "w4g32_asymmetric_half_scales", "fp4_g16", "folded_float_activations", "nf4_g64_half_scales"),
            *("mxfp4", "nvfp4", "folded_nf4_tensor", "silu_float", "conv_w4g16"),
            *("vq2", "vq3_half_scales", "folded_float_activations", "long_vectors_few_bits", "conv_vq2"),
        ],
        "fp8_e4m3 activations are not integers": ["fp8", "conv_fp4", "fp8_activations", "conv_uneven"],
        "fp4_e2m1 activations are not integers": ["a4_fp4"],
        "activations have a scale for each 64 positions": ["w8a8_static_by_group", "w4a4_groups", "static_by_group"],
        "activations have a scale for each 32 positions": ["w4g64_a8g32", "a4_groups"],
        "the weight's code table does not hold whole numbers": ["nf4"],
        "the codebook does not hold whole numbers": [
            *("uneven_vectors", "scalars", "static_unsigned", "static_by_row", "low_rank", "gelu"),
            *("conv_static", "conv_strided", "conv_grouped", "conv_everything"),
        ],
    }
    call = calls(CASES[0], SHAPES[:1])[0]
    assert cpu_call.refusal(call.name, replace(call.facts(), device="cuda")) == "runs on the CPU only, not on cuda"


@pytest.mark.parametrize("isa", ISAS)
def test_static_symmetric_convolutions_are_taken(isa: str) -> None:
    """int8 weights and one stored activation scale without zero points: what a statically quantized U-Net has."""
    x, named = build_conv(next(case for case in CONV_CASES if case.name == "conv_static_symmetric"))
    call = ConvCall(x, **named)
    assert call.act_scale is not None and call.act_zero_point is None and call.zero_points is None
    with isa_in_use(isa) as library:
        assert library.refusal(call.name, call.facts()) == ""
        assert error(library.compute(call), Reference()(call)) <= PARITY


def _left(library: cpu_library.Library, call: Call) -> bool:
    facts = call.facts()
    return not cpu_call.refusal(call.name, facts) and bool(library.refusal(call.name, facts))


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_threads_change_no_bit(case: Case | VqCase) -> None:
    library = cpu_library.the_library()
    for call in calls(case, [(401, 96, 130), (5, 257, 65)]):
        if library.refusal(call.name, call.facts()):
            continue
        results = []
        for count in (1, 2, 3, 4):
            with torch_threads(count):
                results.append(library.compute(call))
        assert all(torch.equal(y, results[0]) for y in results[1:])


@pytest.mark.parametrize("isa", ISAS)
def test_rows_do_not_depend_on_their_batch(isa: str) -> None:
    """To the bit; few rows are another loop, which may add in another order."""
    case = next(case for case in CASES if case.name == "w4g32_a8")
    x, named = build(case, 401, 96, 130)
    with isa_in_use(isa) as library:
        y = library.compute(MatmulCall(x, **named))
        for rows in (slice(7, 20), slice(0, 90), slice(350, 401)):
            assert torch.equal(library.compute(MatmulCall(x[rows], **named)), y[rows])
        for rows in (slice(0, 1), slice(5, 9), slice(398, 401)):
            assert error(library.compute(MatmulCall(x[rows], **named)), y[rows]) <= 1e-6


@pytest.mark.parametrize("name", ["w8a8", "w4g32_a8", "folded", "svdquant"])
def test_any_layout_and_type_of_tensors(name: str) -> None:
    """Half precision in and out, tensors with gaps, off their alignment, more axes, no rows at all."""
    library = cpu_library.the_library()
    x, named = build(next(case for case in CASES if case.name == name))
    for dtype in (torch.float16, torch.bfloat16):
        y = library.compute(MatmulCall(x.to(dtype), **named))
        assert y.dtype == dtype and torch.equal(y, library.compute(MatmulCall(x.to(dtype).float(), **named)).to(dtype))
    y = library.compute(MatmulCall(x, **named))
    gaps: dict[str, Any] = {
        key: _with_gaps(value) if isinstance(value, Tensor) else value for key, value in named.items()
    }
    assert torch.equal(library.compute(MatmulCall(_with_gaps(x), **gaps)), y)
    shifted: dict[str, Any] = {
        key: _shifted(value) if isinstance(value, Tensor) else value for key, value in named.items()
    }
    assert torch.equal(library.compute(MatmulCall(_shifted(x), **shifted)), y)
    assert torch.equal(library.compute(MatmulCall(x.reshape(3, 11, -1), **named)).flatten(0, 1), y)
    assert library.compute(MatmulCall(x[:0], **named)).shape == (0, y.shape[1])


def _with_gaps(value: Tensor) -> Tensor:
    return torch.stack([value, value], -1)[..., 0]


def _shifted(value: Tensor) -> Tensor:
    return torch.cat([value.reshape(-1)[:1], value.reshape(-1)])[1:].reshape(value.shape)


def test_images_of_any_layout() -> None:
    library = cpu_library.the_library()
    x, named = build_conv(next(case for case in CONV_CASES if case.name == "conv_w8a8"))
    y = library.compute(ConvCall(x, **named))
    assert torch.equal(library.compute(ConvCall(x.to(memory_format=torch.channels_last), **named)), y)
    assert torch.equal(library.compute(ConvCall(x[:0], **named)), y[:0])


def test_rows_of_zeros_and_of_one_huge_value() -> None:
    x, named = build(next(case for case in CASES if case.name == "w4g32_a8"))
    x[3] = 0
    x[5, 7] = 1e30
    call = MatmulCall(x, **named)
    y, expected = cpu_library.the_library().compute(call), Reference()(call)
    assert torch.isfinite(y).all()
    for row in range(len(x)):
        assert float((y[row] - expected[row]).norm()) <= PARITY * float(expected[row].norm())


def test_the_operator_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)
    x, named = build(next(case for case in CASES if case.name == "w8a8"))
    expected = cpu_library.the_library().compute(MatmulCall(x, **named))
    assert torch.equal(torch.ops.compress.qmatmul(x, **named), expected)


def test_contradictions_are_errors() -> None:
    x, named = build(next(case for case in CASES if case.name == "w8a8"))
    call = MatmulCall(x, **named)
    with pytest.raises(FormatError, match="compress::qmatmul: codes are"):
        cpu_library.the_library().compute(replace(call, codes=call.codes[:, :, :-1]))
    assert "codes" in {field.name for field in fields(call)}


def test_zero_points_that_are_no_codes_are_errors() -> None:
    x, named = build(next(case for case in CASES if case.name == "w4g32_a8"))
    zero_points = torch.full(named["scales"].shape, 15, dtype=torch.uint8)
    assert torch.ops.compress.qmatmul(x, **{**named, "zero_points": zero_points}).isfinite().all()
    zero_points[-1, -1] = 16
    with pytest.raises(FormatError, match="zero point is not below 16"):
        torch.ops.compress.qmatmul(x, **{**named, "zero_points": zero_points})


@pytest.mark.parametrize("zero_point", [0.5, 200.0, float("nan")])
def test_activation_zero_points_that_are_no_codes_go_to_the_reference(
    zero_point: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)
    x, named = build(next(case for case in CASES if case.name == "w8a8"))
    named |= {"act_scale": torch.tensor([0.02]), "act_zero_point": torch.tensor([zero_point])}
    call = MatmulCall(x, **named)
    assert select(call.name, call.facts()).name == "cpu"
    with pytest.raises(cpu_library.RefusedValues, match="not one of the codes from -128 to 127"):
        cpu_library.the_library().compute(call)
    y = torch.ops.compress.qmatmul(x, **named)
    assert torch.equal(y.nan_to_num(), Reference()(call).nan_to_num())


@pytest.mark.parametrize("name", ["folded_asymmetric", "folded_fp4", "folded_zero_point"])
def test_scales_that_do_not_fold(name: str) -> None:
    """Channels of zeros, of negative scales, and with a scale that is not finite."""
    x, named = build(next(case for case in CASES if case.name == name))
    scales = scale_values(named["scales"], named.get("global_scale")).expand(named["codes"].shape[:2]).clone()
    scales[0], scales[1], scales[2, 1] = 0.0, -scales[1], float("nan")
    named |= {"scales": scales, "global_scale": None}
    y, wanted = torch.ops.compress.qmatmul(x, **named), reference.qmatmul(x, **named)
    finite = wanted.isfinite()
    assert torch.equal(finite, y.isfinite()) and torch.equal(finite.all(0), torch.arange(len(scales)) != 2)
    assert error(y[finite], wanted[finite]) <= PARITY
