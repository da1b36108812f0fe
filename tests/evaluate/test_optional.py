import pytest
import torch

from compress.errors import InputError
from compress.evaluate.optional import require_package, rgb_bytes


def test_packages_are_there_or_named_with_their_extra() -> None:
    require_package("torch", "none")
    with pytest.raises(InputError, match=r"needs no_such_package .*compress\[text\]"):
        require_package("no_such_package", "text")


def test_bytes_of_images() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 2)
    found = rgb_bytes(x)
    assert found.dtype == torch.uint8 and found.shape == (1, 3, 2, 2)
    assert found[0, 2].flatten().tolist() == [0, 128, 255, 255]
    assert torch.equal(rgb_bytes(x.expand(-1, 3, -1, -1)), found)


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (3, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="1 or 3"):
        rgb_bytes(torch.zeros(shape))
