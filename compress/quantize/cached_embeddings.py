"""Precomputed time embeddings: when the sampler's steps are fixed, a table replaces what would compute them.

The outputs of the full-precision embedding at the calibrated timesteps are stored, `[T, channels]`, and the layers that
made them are left out (an option of TFMQ-DM's journal version, 2025). Class embeddings stay tables of their own, which
diffusers adds: together that is `[T, channels] + [classes, channels]`, bit for bit what `[T, classes, channels]` would
hold, and much smaller.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CheckpointError, ModelError, RunError
from compress.models.adapter import Adapter, DenoiserInputs, LayerInfo, Role
from compress.quantize.clock import Clock, install_clock

TABLE = "table"
FEWEST = 8
"""Tables are computed in batches of at least this size: matrix products of fewer rows may round otherwise."""


@dataclass(frozen=True)
class EmbeddingCache:
    """Which modules of a model are tables, and for which timesteps (ascending)."""

    modules: tuple[str, ...]
    timesteps: tuple[float, ...]

    def to_config(self) -> dict[str, Any]:
        """The entry `cached_embeddings` of `quantization_config`."""
        return {"modules": list(self.modules), "timesteps": list(self.timesteps)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> EmbeddingCache | None:
        """From a whole `quantization_config`; None where nothing is cached. Raises CheckpointError if damaged."""
        entry = config.get("cached_embeddings")
        if entry is None:
            return None
        try:
            cache = cls(tuple(entry["modules"]), tuple(float(t) for t in entry["timesteps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"cached_embeddings is not readable: {error}", where=where) from error
        if not cache.modules or not cache.timesteps or list(cache.timesteps) != sorted(set(cache.timesteps)):
            raise CheckpointError("cached_embeddings needs modules, and ascending timesteps", where=where)
        return cache

    def replaces(self, tensor: str) -> bool:
        """Whether a tensor of the original model, or a layer, lies in a module that is a table now."""
        return any(tensor.startswith(f"{module}.") for module in self.modules)


class CachedEmbedding(nn.Module):
    """Stands in for a time embedding: the row of the timestep that the model was called with.

    Attributes:
        table: `[T, channels]`.
        clock: tells the row of every sample; one for all tables of a model.
    """

    table: Tensor

    def __init__(self, channels: int, clock: Clock, device: str | torch.device = "meta") -> None:
        super().__init__()
        self.clock = clock
        self.register_buffer(TABLE, torch.empty(len(clock.timesteps), channels, device=device))

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embeddings `[b, channels]`; of `sample` `[b, ...]`, the sinusoids of the timesteps, only the place counts."""
        return self.table.index_select(0, self.clock.indices.to(self.table.device))

    def extra_repr(self) -> str:
        return f"{len(self.clock.timesteps)} timesteps, {self.table.shape[1]} channels"


class KnownTimesteps:
    """Refuses timesteps that no table has a row for; a model that is being exported cannot look at their values."""

    def __init__(self, timesteps: Sequence[float], names: Sequence[str]) -> None:
        self.known, self.names = torch.tensor(timesteps, dtype=torch.float32), tuple(names)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        given = dict(zip(self.names, args, strict=False)) | kwargs
        t = torch.as_tensor(given["timestep"]).reshape(-1).float().cpu()
        strange = t[~torch.isin(t, self.known)]
        if len(strange):
            shown = ", ".join(f"{value:g}" for value in self.known.tolist())
            raise RunError(
                f"the model has no cached embedding for t = {float(strange[0]):g}",
                hint=f"sample with the recipe's sampler and steps; its timesteps are {shown}",
            )


def time_embeddings(adapter: Adapter, model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that make an embedding of the timestep alone: the U-Net's, or one in each block of a DiT.

    Raises:
        ModelError: the family does not know its conditioning, or no such module is there.
    """
    layers = [layer for layer in adapter.conditioning_layers(model) if embeds_time(layer)]
    modules = tuple(dict.fromkeys(layer.name.rpartition(".")[0] for layer in layers))
    if not modules or not all(hasattr(model.get_submodule(name), "linear_2") for name in modules):
        raise ModelError(
            f"no time embedding of {adapter.source.denoiser_class} can be replaced by a table",
            hint="use `embeddings: live`",
        )
    return modules


def embeds_time(layer: LayerInfo) -> bool:
    """Whether a conditioning layer makes the time embedding, rather than projecting it into a block."""
    return layer.role is Role.TIME_EMBEDDING and not layer.name.endswith("time_emb_proj")


def embedding_tables(adapter: Adapter, model: nn.Module, timesteps: Sequence[float]) -> dict[str, Tensor]:
    """What every time embedding of the full-precision model gives at ascending timesteps, `[T, channels]` by module."""
    names = time_embeddings(adapter, model)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    t = torch.tensor(timesteps, dtype=torch.float32)
    t = t.repeat(-(-FEWEST // len(t)))
    example = adapter.example_inputs(len(t), device=str(next(model.parameters()).device))
    with ExitStack() as stack, torch.no_grad():
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(partial(_keep, found[name]))
            stack.callback(hook.remove)
        adapter.denoise(model, example.sample, t.to(example.sample.device), example.condition)
    return {name: outputs[0][: len(timesteps)].clone() for name, outputs in found.items()}


def known_inputs(adapter: Adapter, inputs: DenoiserInputs) -> DenoiserInputs:
    """The same inputs at a timestep that the adapter's checkpoint has an embedding for; as they are without tables."""
    cache = EmbeddingCache.from_config(adapter.source.config.get("quantization_config") or {})
    if cache is None:
        return inputs
    return inputs._replace(timestep=torch.full_like(inputs.timestep, cache.timesteps[-1], dtype=torch.float32))


def _keep(found: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    found.append(output.detach().float().cpu())


def swap_embeddings(model: nn.Module, cache: EmbeddingCache, device: str | torch.device = "meta") -> None:
    """Put unfilled tables in the place of the cache's modules, in place.

    Every forward of the model then finds its rows by its `timestep`, and refuses timesteps without a row.

    Raises:
        CheckpointError: a module is not in the model, or is no time embedding.
        UnsupportedLayer: the model's forward takes no `timestep`.
    """
    clock = Clock(cache.timesteps)
    for name in cache.modules:
        try:
            last = model.get_submodule(name).get_submodule("linear_2")
        except AttributeError as error:
            raise CheckpointError("the model has no time embedding of this name", where=name) from error
        assert isinstance(last, nn.Linear)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, CachedEmbedding(last.out_features, clock, device))
    install_clock(model, clock)
    names = list(inspect.signature(model.forward).parameters)
    model.register_forward_pre_hook(KnownTimesteps(cache.timesteps, names), with_kwargs=True)
