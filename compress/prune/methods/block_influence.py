"""Block influence: remove the blocks that turn their input the least (Men et al. 2024, "ShortGPT", arXiv 2403.03853).

BI_i = 1 - E[cos(x_i, x_{i+1})] over tokens (equation 1), x_i the input and x_{i+1} the output of block i.

Departures from the paper, which is about language models:
- the expectation runs over the logged trajectory of the sampler, both guidance halves, so inputs carry the noise that
  the model meets (the script published with TinyFusion feeds clean latents);
- the first and the last block stay: diffusers' DiT reads its output modulation's embedding from block 0, and the last
  block is protected in TinyFusion's version of the score.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.calibration.trajectory import Trajectory
from compress.config import Config
from compress.models.adapter import Adapter
from compress.prune.depth import token_similarity

CITATION = "Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, eq. 1"


class BlockInfluence(Config):
    """Remove the blocks with the least influence on the hidden state."""

    kind: Literal["block_influence"] = "block_influence"
    keep: float = Field(gt=0, lt=1, description="Share of the blocks that stays, rounded to whole blocks.")
    samples: int = Field(512, ge=1, description="Logged model calls the score is averaged over.")


class _Scores:
    """Running mean of 1 - cosine for every block, filled by forward hooks."""

    def __init__(self, count: int) -> None:
        self.sums, self.tokens = [0.0] * count, [0] * count

    def hook(self, index: int) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            similarity = token_similarity(before.double(), after.double())
            self.sums[index] += float((1 - similarity).sum())
            self.tokens[index] += similarity.numel()

        return record

    def means(self) -> list[float]:
        return [total / count for total, count in zip(self.sums, self.tokens, strict=True)]


def block_influence(adapter: Adapter, model: nn.Module, trajectory: Trajectory, samples: int, seed: int) -> list[float]:
    """BI of every block in order, over `samples` logged calls spread over the noise levels."""
    blocks = adapter.blocks(model)
    scores = _Scores(len(blocks))
    handles = [b.register_forward_hook(scores.hook(i), with_kwargs=True) for i, (_, b) in enumerate(blocks)]
    try:
        pairs = trajectory.pairs(samples, seed)
        for start in range(0, len(pairs.t), 64):
            batch = pairs.part(start, start + 64)
            with torch.inference_mode():
                adapter.denoise(model, batch.sample, batch.t, batch.condition)
    finally:
        for handle in handles:
            handle.remove()
    return scores.means()


def kept_blocks(scores: list[float], keep: float) -> list[int]:
    """Indices that stay, in order: the first, the last, and the most influential of the rest."""
    count = max(2, round(keep * len(scores)))
    middle = sorted(range(1, len(scores) - 1), key=lambda i: (-scores[i], i))[: count - 2]
    return sorted({0, len(scores) - 1, *middle})
