import pytest
import torch

from compress.errors import RunError
from compress.evaluate.finite import require_finite, require_finite_items


def test_finite_numbers_pass() -> None:
    assert require_finite(-2.5, "a number") == -2.5
    require_finite_items(torch.zeros(3, 2, 2), "images")
    require_finite_items(torch.zeros(0, 4), "images")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_others_are_refused_with_their_name_and_count(bad: float) -> None:
    with pytest.raises(RunError, match=r"a number is .*overflowed"):
        require_finite(bad, "a number")
    batch = torch.zeros(5, 2, 2)
    batch[1], batch[4, 0, 0] = bad, bad
    with pytest.raises(RunError, match="2 of 5 images hold NaN or infinity"):
        require_finite_items(batch, "images")
