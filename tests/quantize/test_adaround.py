"""AdaRound's building blocks against their formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from compress.quantize.rounding.adaround import (
    beta_at,
    hard_rounding,
    initial_offset,
    rectified_sigmoid,
    rounding_regularizer,
)


def test_the_initial_offset_is_the_inverse_of_h() -> None:
    fraction = torch.linspace(0, 0.999, 500, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(initial_offset(fraction)), fraction, atol=1e-12)


def test_hard_rounding_of_the_initial_offset_is_rounding_to_nearest() -> None:
    fraction = torch.tensor([0.0, 0.25, 0.4999, 0.5001, 0.75, 0.9999], dtype=torch.float64)
    assert hard_rounding(initial_offset(fraction)).tolist() == [0, 0, 0, 1, 1, 1]


def test_h_reaches_both_ends_and_has_gradient_in_between() -> None:
    offset = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    h = rectified_sigmoid(offset)
    assert h.tolist() == pytest.approx([0.0, 0.5, 1.0])
    h.sum().backward()
    assert offset.grad is not None
    assert offset.grad.tolist() == pytest.approx([0.0, 0.3, 0.0])  # 1.2 * 1/4 in the middle


def test_the_regularizer_vanishes_only_at_decisions_and_sharpens_as_beta_falls() -> None:
    decided, undecided = torch.tensor([-9.0, 9.0]), initial_offset(torch.tensor([0.2, 0.5]))
    assert float(rounding_regularizer(decided, 2.0)) == 0.0
    assert float(rounding_regularizer(undecided, 2.0)) == pytest.approx((1 - 0.36) + 1.0)
    assert float(rounding_regularizer(undecided, 20.0)) > float(rounding_regularizer(undecided, 2.0))


def test_beta_warms_up_then_falls_linearly_to_its_end() -> None:
    found = [beta_at(i, 100, warmup=0.2, start=20, end=2) for i in range(100)]
    assert found[:20] == [None] * 20
    assert found[20] == 20
    assert found[99] == pytest.approx(2)
    steps = [b - a for a, b in pairwise(found) if a is not None and b is not None]
    assert steps == pytest.approx([-18 / 79] * 79)


def test_a_single_iteration_ends_at_the_end() -> None:
    assert beta_at(0, 1, warmup=0.0, start=20, end=2) == 2
