from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case, build

from compress.errors import FormatError
from compress.formats.layout import unpack_codes
from compress.formats.qtensor import code_values
from compress.kernels import reference
from compress.kernels.call import MatmulCall
from compress.kernels.folding import SMALLEST_RATIO, fold, largest_value

FOLDED = [case for case in CASES if case.attributes.get("mode") == "folded"]


def _spread(case: Case) -> tuple[torch.Tensor, dict[str, Any]]:
    """A call whose block scales differ within a channel, so that some blocks fold and some do not."""
    x, named = build(case)
    factors = torch.tensor([1.0, 0.3, 0.2, 0.05])
    return x, {**named, "scales": named["scales"].float().amax(1, keepdim=True) * factors}


@pytest.mark.parametrize("case", FOLDED, ids=lambda case: case.name)
def test_added_error_is_within_the_stated_bound(case: Case) -> None:
    x, named = _spread(case)
    call = MatmulCall(x, **named)
    exact = MatmulCall(x, **{**named, "mode": "exact"})
    error = (reference.weight(call) - reference.weight(exact)).abs()
    largest = largest_value(call.bits, call.zero_points is not None, call.table)
    channel = call.scales.amax(1, keepdim=True)
    assert bool((error <= channel * largest / 254 * (1 + 1e-4)).all())
    assert float(error.max()) > 0
    assert float(error[:, 64:].max()) == 0, "ratios below 1/4 stay exact"


@pytest.mark.parametrize("case", FOLDED, ids=lambda case: case.name)
def test_panel_is_int8_and_disjoint_from_the_rest(case: Case) -> None:
    _, named = _spread(case)
    values = code_values(
        unpack_codes(named["codes"], case.spec.number_format.bits, 32),
        named["zero_points"],
        named["table"],
        case.spec.number_format.bits,
    )
    largest = largest_value(case.spec.number_format.bits, named["zero_points"] is not None, named["table"])
    folded = fold(values, named["scales"], largest, case.spec.number_format.bits)
    assert torch.equal(folded.panel, folded.panel.round()) and float(folded.panel.abs().max()) <= 127
    assert folded.exact.tolist() == [[False, False, True, True]] * 37
    assert not bool(((folded.panel != 0) & (folded.rest != 0)).any())


def test_a_ratio_of_a_quarter_still_folds() -> None:
    values = torch.ones(1, 3, 2)
    folded = fold(values, torch.tensor([[4.0, 4 * SMALLEST_RATIO, 0.99]]), 8.0, 4)
    assert folded.exact.tolist() == [[False, False, True]]
    assert folded.panel.tolist() == [[[16, 16], [4, 4], [0, 0]]]


def test_one_scale_per_channel_needs_no_folding() -> None:
    x, named = build(CASES[7])
    assert torch.equal(reference.qmatmul(x, **named, mode="folded"), reference.qmatmul(x, **named))


def test_more_than_six_bits_are_refused() -> None:
    x, named = build(next(case for case in CASES if case.name == "both_zero_points"))
    with pytest.raises(FormatError, match="8 bits cannot be folded"):
        reference.qmatmul(x, **named, mode="folded")
