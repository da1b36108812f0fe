"""For tests that need the C++ kernels: skipped with a reason where there are none, unless they are required."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from compress.kernels import cpu_library

LIBRARY = cpu_library.library()
needs_kernels = pytest.mark.skipif(
    LIBRARY is None and not cpu_library.required(), reason=f"no CPU kernels: {cpu_library.reason()}"
)
ISAS = LIBRARY.isas if LIBRARY else ("none",)
PARITY = 1e-5


@contextmanager
def isa_in_use(name: str) -> Iterator[cpu_library.Library]:
    """The library with that instruction set; the one in use before comes back."""
    library = cpu_library.the_library()
    before = library.isa
    library.use_isa(name)
    try:
        yield library
    finally:
        library.use_isa(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch, and so the kernels, with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
