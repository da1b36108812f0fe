"""Which calibrated timestep each sample of a batch is at, for scales that differ from timestep to timestep.

Keyed by t as samplers have it, never by a loop counter: schedulers may repeat, skip or reorder steps, and the samples
of a batch may be at different ones (TFMQ-DM's code counts the sampler's steps instead; Huang et al. 2024).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import RunError, UnsupportedLayer
from compress.models.flux import TRAIN_TIMESTEPS

# Classes whose forward takes t divided by this; clocks know it as samplers and adapters do.
_DIVIDED = {"FluxTransformer2DModel": float(TRAIN_TIMESTEPS)}


class Clock:
    """The timesteps that scales are stored for, ascending, and which of them is nearest to each sample of the batch.

    One clock is shared by all layers of a model. Before the first `look` every sample is at the first timestep. Threads
    that run the model at once have their own indices; one that never looked sees the last ones.
    """

    def __init__(self, timesteps: Sequence[float]) -> None:
        self.timesteps = tuple(timesteps)
        self._last = torch.zeros(1, dtype=torch.int64)  # [b]
        self._seen = threading.local()

    @property
    def indices(self) -> Tensor:
        """Of each sample of the batch `[b]`, the number of its nearest timestep."""
        if torch.compiler.is_compiling():  # thread-local storage cannot be traced
            return self._last
        found: Tensor = getattr(self._seen, "indices", self._last)
        return found

    def __reduce__(self) -> tuple[type[Clock], tuple[tuple[float, ...]]]:
        """Copies begin anew: what was seen last may be a stand-in of a tracer, which cannot be copied."""
        return Clock, (self.timesteps,)

    def look(self, timestep: Tensor | float, batch: int) -> None:
        """Set the indices `[b]` of a batch; `timestep` is a number, or one for each sample. Ties go to the lower t."""
        t = torch.as_tensor(timestep).reshape(-1).float()
        known = torch.tensor(self.timesteps, dtype=torch.float32, device=t.device)
        found = (t[:, None] - known).abs().argmin(1).expand(batch)
        self._last = found
        if not torch.compiler.is_compiling():
            self._seen.indices = found

    def pick(self, values: Tensor, x: Tensor) -> Tensor:
        """Of stored `values` `[T]` those of x's samples, shaped `[rows, 1, ...]` to broadcast against x's rows.

        Layers that fold positions into the batch have several rows for each sample, next to each other.

        Raises:
            RunError: the rows of x cannot be shared out over the samples of the batch.
        """
        found = values.index_select(0, self.indices.to(values.device))
        samples, rows = found.shape[0], x.shape[0]
        if samples != rows:
            if rows % samples:
                raise RunError(f"{rows} rows cannot be shared out over {samples} samples")
            found = found[:, None].expand(-1, rows // samples).reshape(-1)
        return found.reshape(-1, *(1 for _ in x.shape[1:]))


class ClockHook:
    """Sets a clock by the `timestep` of every forward of a model.

    An object and no closure: a copy of the model must get a copy of the clock that its layers share.

    Attributes:
        names: of the forward's parameters; the first is the batch of samples.
        factor: multiplies the model's `timestep`, to make it the sampler's t.
    """

    def __init__(self, clock: Clock, names: Sequence[str], factor: float = 1.0) -> None:
        self.clock, self.names, self.factor = clock, tuple(names), factor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        timestep = given["timestep"] if self.factor == 1.0 else given["timestep"] * self.factor
        self.clock.look(timestep, given[self.names[0]].shape[0])


def install_clock(model: nn.Module, clock: Clock) -> Any:
    """Let every forward of `model` set the clock by its `timestep`; the handle that is returned removes that again.

    The first parameter of the model's forward is the batch of samples; the clock's timesteps are the sampler's.

    Raises:
        UnsupportedLayer: the model's forward takes no `timestep`.
    """
    names = list(inspect.signature(model.forward).parameters)
    if "timestep" not in names:
        raise UnsupportedLayer(
            f"the forward of {type(model).__name__} takes no `timestep`, so scales per timestep cannot be chosen",
            hint="use one scale for all timesteps",
        )
    factor = _DIVIDED.get(type(model).__name__, 1.0)
    return model.register_forward_pre_hook(ClockHook(clock, names, factor), with_kwargs=True)
