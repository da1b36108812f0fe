"""Scales of quantized attention: the full-precision model runs on its trajectory, observers watch q, k, v, softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibration.sampler import denoise_with
from compress.calibration.trajectory import Trajectory
from compress.formats import get_format
from compress.models.adapter import Adapter
from compress.quantize.attention import AttentionSettings, AttentionSpec
from compress.quantize.attention_processor import SCALE_NAMES, WatchedAttention
from compress.quantize.observers import NoiseBands, ObserverSettings, make_observer, order_matters, static_scale

SCORES = 1 << 24  # scores in memory at once; a latent U-Net has 134 million of them for each sample


class AttentionWatch:
    """Statistics of one attention module; `sigma` `[b]` must be set before each forward."""

    def __init__(self, settings: AttentionSettings, observer: ObserverSettings) -> None:
        self.settings = settings
        fmt = get_format(f"int{settings.bits}")
        self.observers = [make_observer(observer, NoiseBands(), fmt) for _ in range(3)]
        self.largest_weight = 0.0
        self.sigma = torch.empty(0)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float) -> None:
        for observer, x in zip(self.observers, (query, key, value), strict=True):
            observer.update(x, self.sigma)
        if self.settings.softmax_range == "observed":
            self.largest_weight = max(self.largest_weight, largest_weight(query, key, mask, factor))

    def scales(self) -> dict[str, Tensor]:
        """The four scales, float32 `[1]`, by buffer name."""
        fmt = get_format(f"int{self.settings.bits}")
        found = [static_scale(observer.range(fmt, True), fmt, True).scale for observer in self.observers]
        largest = self.largest_weight if self.settings.softmax_range == "observed" else 1.0
        found.append(torch.tensor([largest / (2**self.settings.softmax_bits - 1)], dtype=torch.float32))
        return dict(zip(SCALE_NAMES, found, strict=True))


def largest_weight(query: Tensor, key: Tensor, mask: Tensor | None, factor: float) -> float:
    """Largest output of the softmax for `[b, heads, n, c]` and `[b, heads, m, c]`, a few queries at a time."""
    count, found = max(1, SCORES // (query.shape[1] * key.shape[2])), 0.0
    masks = None if mask is None else mask.expand(*query.shape[:3], key.shape[2])
    for sample in range(len(query)):
        for first in range(0, query.shape[2], count):
            rows = slice(first, first + count)
            scores = (query[sample, :, rows] @ key[sample].transpose(-1, -2)).float() * factor
            scores = scores if masks is None else scores + masks[sample, :, rows]
            found = max(found, float(scores.softmax(-1).max()))
    return found


@contextmanager
def watched(model: nn.Module, watches: dict[str, AttentionWatch]) -> Iterator[None]:
    """Inside the block the named attention modules report to their watches; afterwards they are as they were."""
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in watches}
    before = {name: module.processor for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.set_processor(WatchedAttention(watches[name]))
        yield
    finally:
        for name, module in modules.items():
            module.set_processor(before[name])


@torch.no_grad()
def attention_scales(
    adapter: Adapter,
    model: nn.Module,
    trajectory: Trajectory,
    settings: AttentionSettings,
    spec: AttentionSpec,
    observer: ObserverSettings,
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The stored tensors of quantized attention by full name, `<module>.processor.<scale>`; float32 `[1]` each.

    `model` is the full-precision one; it runs once over the whole trajectory, `batch_size` inputs at a time, mixed by
    `seed` where a running average would otherwise remember the last noise levels only.
    """
    watches = {name: AttentionWatch(settings, observer) for name in spec.targets}
    denoise, device, done = denoise_with(adapter, model), next(model.parameters()).device, 0
    with watched(model, watches):
        for batch in trajectory.batches(batch_size, shuffle=seed if order_matters(observer) else None):
            record = batch.to(device)
            for watch in watches.values():
                watch.sigma = record.sigma
            denoise(record.sample, record.t, record.condition)
            done += len(record.t)
            if progress is not None:
                progress(done, len(trajectory))
    return {f"{name}.processor.{key}": t for name, watch in watches.items() for key, t in watch.scales().items()}
