"""Physical removal of whole blocks: a smaller component that loads in plain diffusers by its config alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import UnsupportedLayer

DEPTH_KEY = "num_layers"


def block_prefix(names: Sequence[str], config: Mapping[str, Any]) -> str:
    """The one module list whose length is the config's `num_layers`, from its blocks' names.

    Raises:
        UnsupportedLayer: the blocks are not a single numbered list, or the config does not hold their number.
    """
    prefixes = {name.rpartition(".")[0] for name in names}
    if len(prefixes) != 1 or config.get(DEPTH_KEY) != len(names):
        raise UnsupportedLayer(
            f"{len(names)} blocks in {len(prefixes)} lists do not follow `{DEPTH_KEY}` of the config",
            hint="depth pruning needs a transformer with one list of blocks; for a U-Net leave this stage out",
        )
    return prefixes.pop()


def renumber(name: str, prefix: str, kept: Sequence[int]) -> str | None:
    """The tensor's name in the shorter model; None if it belongs to a removed block."""
    found = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
    if found is None:
        return name
    index = int(found[1])
    return f"{prefix}.{kept.index(index)}.{found[2]}" if index in kept else None


def shorter_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The config of the model with only these blocks."""
    return {**config, DEPTH_KEY: len(kept)}


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """config.json, as diffusers writes it."""
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def token_similarity(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of each token before and after a block, `[b, tokens]`, from `[b, tokens, channels]`."""
    return torch.cosine_similarity(before, after, dim=-1, eps=1e-12)
