"""How far a unit's outputs are from full precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["paper", "compat"]


def reconstruction_loss(
    outputs: Sequence[Tensor], targets: Sequence[Tensor], norm: float, mode: Mode = "paper"
) -> Tensor:
    """`|output - target| ** norm`, summed over channels and averaged over the rest; outputs of a unit add up.

    `compat` sums over axis 1, as Q-Diffusion's released code does. That is the channels of images `[b, c, h, w]`, but
    the tokens of `[b, tokens, c]`, so that the regularizer weighs differently on blocks of different kinds. `paper`
    sums over the channels of both; it is our reading, the papers write a norm without axes.
    """
    total: Tensor | None = None
    for output, target in zip(outputs, targets, strict=True):
        axis = -1 if mode == "paper" and output.dim() == 3 else min(1, output.dim() - 1)
        loss = _power_sum(output, target, norm) * (output.shape[axis] / output.numel())
        total = loss if total is None else total + loss
    assert total is not None
    return total


@torch.no_grad()
def mean_loss(error: Callable[[Tensor], Tensor], count: int, batch_size: int) -> float:
    """The loss over all rows 0 to count - 1; `error` gives the mean loss of rows (int64 `[b]`)."""
    total = 0.0
    for rows in torch.split(torch.arange(count), batch_size):
        total += float(error(rows)) * len(rows)
    return total / count


def _power_sum(output: Tensor, target: Tensor, norm: float) -> Tensor:
    if norm == 2:
        return F.mse_loss(output, target, reduction="sum")
    return (output - target).abs().pow(norm).sum()
