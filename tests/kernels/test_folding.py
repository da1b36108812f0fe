import math
from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case, build

from compress.errors import FormatError
from compress.formats import get_format, scale_values
from compress.formats.layout import unpack_codes
from compress.formats.qtensor import code_values
from compress.kernels import reference
from compress.kernels.call import MatmulCall
from compress.kernels.folding import SMALLEST_RATIO, fold, largest_value, round_table, whole_factor

FOLDED = [case for case in CASES if case.attributes.get("mode") == "folded"]
GROUPED = [case for case in FOLDED if case.spec.granularity == "group" and case.spec.format != "nf4"]


def _spread(case: Case) -> tuple[torch.Tensor, dict[str, Any]]:
    """A call whose block scales differ within a channel, so that some blocks fold and some do not."""
    x, named = build(case)
    factors = torch.tensor([1.0, 0.3, 0.2, 0.05, 0.7, 0.01, 0.25])[: named["codes"].shape[1]]
    scales = scale_values(named["scales"], named.get("global_scale")).amax(1, keepdim=True) * factors
    return x, {**named, "scales": scales, "global_scale": None}


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.name)
def test_added_error_is_within_the_stated_bound(case: Case) -> None:
    x, named = _spread(case)
    call = MatmulCall(x, **named)
    exact = MatmulCall(x, **{**named, "mode": "exact"})
    error = (reference.weight(call) - reference.weight(exact)).abs()
    largest = largest_value(call.bits, call.zero_points is not None, call.table)
    channel = call.scales.amax(1, keepdim=True)
    assert bool((error <= channel * largest / 254 * (1 + 1e-4)).all())
    assert float(error.max()) > 0
    assert float(error[:, 2 * call.block_size : 4 * call.block_size].max()) == 0, "ratios below 1/4 stay exact"


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.name)
def test_panel_is_int8_and_disjoint_from_the_rest(case: Case) -> None:
    _, named = _spread(case)
    values = code_values(
        unpack_codes(named["codes"], case.spec.number_format.bits, named["block_size"]),
        named["zero_points"],
        named["table"],
        case.spec.number_format.bits,
    )
    largest = largest_value(case.spec.number_format.bits, named["zero_points"] is not None, named["table"])
    folded = fold(values, named["scales"], largest, case.spec.number_format.bits)
    assert torch.equal(folded.panel, folded.panel.round()) and float(folded.panel.abs().max()) <= 127
    assert folded.exact[:, :4].tolist() == [[False, False, True, True]] * 37
    assert not bool(((folded.panel != 0) & (folded.rest != 0)).any())


def test_a_ratio_of_a_quarter_still_folds() -> None:
    values = torch.ones(1, 3, 2)
    folded = fold(values, torch.tensor([[4.0, 4 * SMALLEST_RATIO, 0.99]]), 8.0, 4)
    assert folded.exact.tolist() == [[False, False, True]]
    assert folded.panel.tolist() == [[[16, 16], [4, 4], [0, 0]]]


def test_scales_that_are_no_part_of_the_largest_stay_exact() -> None:
    values = torch.full((4, 2, 1), 3.0)
    scales = torch.tensor([[0.0, 0.0], [-1.0, -2.0], [1.0, -1.0], [1.0, math.nan]])
    folded = fold(values, scales, 8.0, 4)
    assert folded.exact.tolist() == [[False, False], [False, True], [False, True], [True, True]]
    assert float(folded.panel.abs().max()) <= 127
    weight = (folded.panel * folded.scale + folded.rest)[..., 0]
    assert weight[:3].tolist() == [[0, 0], [pytest.approx(-3, abs=8 / 254), -6], [pytest.approx(3, abs=8 / 254), -3]]
    assert bool(weight[3].isnan()[1])


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-39])
def test_tables_too_small_to_divide_by_become_zeros(largest: float) -> None:
    whole, unit = round_table(torch.linspace(-1, 1, 16) * largest)
    assert whole.tolist() == [0.0] * 16 and 0 < float(unit) < 1e-30


def test_one_scale_per_channel_needs_no_folding() -> None:
    x, named = build(CASES[7])
    assert torch.equal(reference.qmatmul(x, **named, mode="folded"), reference.qmatmul(x, **named))


def test_nf4_under_group_scales_rounds_its_table_and_nothing_else() -> None:
    x, named = _spread(next(case for case in CASES if case.name == "folded_nf4_g32"))
    call = MatmulCall(x, **named)
    assert call.folds and call.rounds_table and not call.facts().folds_blocks
    error = (reference.weight(call) - reference.weight(MatmulCall(x, **{**named, "mode": "exact"}))).abs()
    own_scale = call.scales.repeat_interleave(call.block_size, 1)[:, : call.k]
    assert bool((error <= own_scale / 254 * (1 + 1e-4)).all()), "v_max is 1"
    for block in range(call.scales.shape[1]):
        assert float(error[:, block * call.block_size : (block + 1) * call.block_size].max()) > 0


@pytest.mark.parametrize("name", ["folded_nf4", "folded_nf4_tensor"])
def test_nf4_under_one_scale_is_rounded_to_the_panel(name: str) -> None:
    x, named = build(next(case for case in CASES if case.name == name))
    call = MatmulCall(x, **named)
    assert call.folds
    unit = call.scales / 127  # the table's largest entry is 1
    steps = reference.weight(call) / unit
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    error = (reference.weight(call) - reference.weight(MatmulCall(x, **{**named, "mode": "exact"}))).abs()
    assert 0 < float((error / unit).max()) <= 0.5 + 1e-4


def test_tables_of_whole_numbers_need_no_folding() -> None:
    factors = {name: whole_factor(get_format(name).values or ()) for name in ("fp4_e2m1", "mxfp4", "nf4", "fp8_e4m3")}
    assert factors == {"fp4_e2m1": 16.0, "mxfp4": 16.0, "nf4": None, "fp8_e4m3": None}
    assert whole_factor((-127.0, 0.0, 3.0)) == 1.0 and whole_factor((0.0, 0.0)) is None
    x, named = build(next(case for case in CASES if case.name == "folded_fp4_channel"))
    assert torch.equal(reference.qmatmul(x, **named), reference.qmatmul(x, **{**named, "mode": "exact"}))


def test_more_than_six_bits_are_refused() -> None:
    x, named = build(next(case for case in CASES if case.name == "both_zero_points"))
    with pytest.raises(FormatError, match="8 bits cannot be folded"):
        reference.qmatmul(x, **named, mode="folded")
