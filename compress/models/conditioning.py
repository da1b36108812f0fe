"""What a denoiser makes of the timestep and the class alone: every pair of the two, and what the blocks read of it.

diffusers adds the class embedding to the time embedding, so whatever is called temporal here depends on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.adapter import Adapter, Condition, LayerInfo, Role


@dataclass(frozen=True)
class ConditioningGrid:
    """Every pair of a timestep and a class, timestep by timestep.

    Attributes:
        timesteps: the model's own t, ascending, each once.
        conditions: one condition for each class, `[classes, ...]`, that of no class last; empty for an unconditional
            model, which counts as one class.
    """

    timesteps: tuple[float, ...]
    conditions: Condition

    @property
    def classes(self) -> int:
        """Number of conditions."""
        return next((len(tensor) for tensor in self.conditions.values()), 1)

    def __len__(self) -> int:
        return len(self.timesteps) * self.classes

    def rows(self, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Timesteps `[n]` float32 and condition of the pairs with the numbers `chosen` `[n]`."""
        t = torch.tensor(self.timesteps, dtype=torch.float32)[chosen // self.classes]
        return t, {name: tensor[chosen % self.classes] for name, tensor in self.conditions.items()}


def conditioning_grid(adapter: Adapter, timesteps: Sequence[float], classes: int | None = None) -> ConditioningGrid:
    """The pairs of these timesteps and of the model's classes, no class included where the model knows it.

    Args:
        classes: takes this many classes, at even intervals; None takes all of them.

    Raises:
        ModelError: the model is conditioned on something else.
    """
    count = adapter.class_count() or 1
    taken = count if classes is None else min(classes, count)
    condition = adapter.class_condition(torch.arange(taken) * count // taken)
    null = adapter.null_condition(adapter.class_condition(torch.zeros(1, dtype=torch.long)))
    if null is not None:
        condition = {name: torch.cat([tensor, null[name]]) for name, tensor in condition.items()}
    return ConditioningGrid(tuple(sorted(set(timesteps))), condition)


def projection_layers(adapter: Adapter, model: nn.Module) -> list[LayerInfo]:
    """The layers that project timestep and class into a block or the output head, in the order of computation.

    A U-Net's `time_emb_proj` or the modulated norm in its place, a DiT's modulation layers: the outputs of TFMQ-DM's
    temporal information block (Huang et al. 2024, section 3.2).

    Raises:
        ModelError: the family does not know its conditioning.
    """
    return [layer for layer in adapter.conditioning_layers(model) if _projects(layer)]


def _projects(layer: LayerInfo) -> bool:
    return layer.role is Role.MODULATION or layer.name.rpartition(".")[2] == "time_emb_proj"


def capture_projections(
    adapter: Adapter, model: nn.Module, grid: ConditioningGrid, names: Sequence[str], batch_size: int = 64
) -> dict[str, Tensor]:
    """What the named projections give for every pair of the grid, `[timesteps, classes, channels]` float32 by name.

    Runs the whole denoiser on samples of zeros; its projections do not depend on the sample.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    device = next(chain(model.parameters(), model.buffers())).device
    with ExitStack() as stack, torch.no_grad():
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(partial(_keep, parts[name]))
            stack.callback(hook.remove)
        for chosen in torch.split(torch.arange(len(grid)), batch_size):
            t, condition = grid.rows(chosen)
            given = {name: tensor.to(device) for name, tensor in condition.items()}
            adapter.denoise(model, torch.zeros(len(t), *adapter.sample_shape(), device=device), t.to(device), given)
    shape = (len(grid.timesteps), grid.classes, -1)
    return {name: torch.cat(found).reshape(shape) for name, found in parts.items()}


def _keep(found: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    found.append(output.detach().float().cpu())
