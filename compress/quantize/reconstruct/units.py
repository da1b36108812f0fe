"""Which layers are learned together, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from compress.calibration import Record, denoise_with
from compress.models.adapter import Adapter

_UNITS = frozenset({"BasicTransformerBlock", "Attention"})  # and residual blocks: what levels of U-Nets hold


class Unit(NamedTuple):
    """A block, or a loose layer, and the quantized layers that belong to it, by name in definition order."""

    name: str
    layers: tuple[str, ...]


def find_units(adapter: Adapter, model: nn.Module, layer_names: Iterable[str], record: Record) -> list[Unit]:
    """The units of reconstruction, in the order in which one forward on `record` first calls them.

    A unit is a block of the adapter, or a layer outside all blocks (BRECQ's division, Li et al. 2021, which
    Q-Diffusion takes over). A layer belongs to the block that owns it, whoever else calls it: DiT's head reads the
    embedder of block 0. Blocks that are whole levels of a U-Net, as in text models, divide into their residual,
    transformer and attention blocks. Units without any of `layer_names` are left out, and so are units that the forward
    never runs.
    """
    blocks = [f"{name}{part}" for name, block in adapter.blocks(model) for part in _divided(block)]
    members = _members(blocks, layer_names)
    order: list[str] = []
    handles = [_note_first_call(model.get_submodule(name), name, order) for name in members]
    try:
        with torch.no_grad():
            denoise_with(adapter, model)(record.sample, record.t, record.condition)
    finally:
        for handle in handles:
            handle.remove()
    return [Unit(name, tuple(members[name])) for name in order]


def _divided(block: nn.Module) -> list[str]:
    """What a block consists of as suffixes of its name, if it is a level of a U-Net; else the block itself."""
    if not isinstance(getattr(block, "resnets", None), nn.ModuleList):
        return [""]
    inside: list[str] = []
    for name, module in block.named_modules():
        known = type(module).__name__.startswith("Resnet") or type(module).__name__ in _UNITS
        if name and known and not any(f".{name}".startswith(f"{outer}.") for outer in inside):
            inside.append(f".{name}")
    return inside


def _members(blocks: list[str], layer_names: Iterable[str]) -> dict[str, list[str]]:
    """The quantized layers of every unit that has any."""
    known, members = set(blocks), dict[str, list[str]]()
    for layer in layer_names:
        steps = layer.split(".")
        owners = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
        unit = next((name for name in owners if name in known), layer)
        members.setdefault(unit, []).append(layer)
    return members


def _note_first_call(module: nn.Module, name: str, order: list[str]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if name not in order:
            order.append(name)

    return module.register_forward_pre_hook(note)
