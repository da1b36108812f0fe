"""The guard that keeps NaN and infinity out of reports: JSON has neither, and a number must not hide an overflow."""

from __future__ import annotations

import math

from torch import Tensor

from compress.errors import RunError

_HINT = "the compressed model has probably overflowed: use more bits or finer groups"


def require_finite(value: float, what: str) -> float:
    """The value itself. Raises RunError if it is NaN or infinite."""
    if not math.isfinite(value):
        raise RunError(f"{what} is {value}", hint=_HINT)
    return value


def require_finite_items(batch: Tensor, what: str) -> None:
    """Nothing for a batch `[n, ...]` of finite numbers. Raises RunError that counts the items with NaN or infinity."""
    broken = int((~batch.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise RunError(f"{broken} of {len(batch)} {what} hold NaN or infinity", hint=_HINT)
