"""AdaRound: learn for every weight whether it is rounded up or down (Nagel et al. 2020, "Up or Down?").

One real number V per weight; its rectified sigmoid h(V) in [0, 1] is added to floor(w / scale). The constants are the
paper's (section 3.3, zeta = 1.1 and gamma = -0.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(offset: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1), of the shape of V (eq. 23)."""
    return (offset.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_offset(fraction: Tensor) -> Tensor:
    """V with h(V) = fraction in [0, 1), so that hard rounding begins as rounding to nearest (halves go either way)."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def hard_rounding(offset: Tensor) -> Tensor:
    """1.0 where the weight is rounded up, else 0.0: h(V) >= 1/2 just when V >= 0."""
    return (offset >= 0).to(offset.dtype)


def rounding_regularizer(offset: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2 h(V) - 1| ** beta, which is 0 only when every h(V) is 0 or 1 (eq. 24)."""
    return (1 - (2 * rectified_sigmoid(offset) - 1).abs() ** beta).sum()


def beta_at(iteration: int, iterations: int, *, warmup: float, start: float, end: float) -> float | None:
    """The exponent at an iteration, counted from 0; None during the warm-up, which has no regularizer.

    It falls linearly from `start` to `end` over what is left. The official docstrings say cosine, their code is linear.
    """
    first = warmup * iterations
    if iteration < first:
        return None
    left = iterations - 1 - first
    share = 1.0 if left <= 0 else min(1.0, (iteration - first) / left)
    return start + (end - start) * share
