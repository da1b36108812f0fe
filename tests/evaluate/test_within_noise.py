from __future__ import annotations

import statistics

import pytest

from compress.errors import InputError, RunError
from compress.evaluate.within_noise import SEEDS, within_noise

VALUES = [1.0, 1.1, 0.9, 1.05, 0.95]


def test_both_scales_must_agree() -> None:
    limit = 2 * statistics.stdev(VALUES)
    assert within_noise(0.05, (-0.1, 0.2), VALUES).within
    assert within_noise(0.05, (-0.1, 0.2), VALUES).limit == pytest.approx(limit)
    assert not within_noise(0.05, (0.01, 0.09), VALUES).within  # small, but surely not zero
    assert not within_noise(limit * 1.01, (-1.0, 2.0), VALUES).within  # maybe zero, but the interval says nothing
    assert within_noise(-limit * 0.99, (-1.0, 0.0), VALUES).within  # an interval that ends at zero holds it


def test_full_precision_without_spread_leaves_no_room() -> None:
    assert within_noise(0.0, (0.0, 0.0), [2.0] * SEEDS).within
    assert not within_noise(1e-9, (-1.0, 1.0), [2.0] * SEEDS).within


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="4 seeds"):
        within_noise(0.0, (0.0, 0.0), VALUES[:4])
    with pytest.raises(InputError, match="upside down"):
        within_noise(0.0, (1.0, -1.0), VALUES)
    with pytest.raises(RunError):
        within_noise(float("nan"), (0.0, 0.0), VALUES)
