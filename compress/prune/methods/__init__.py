"""Pruning methods, one file each."""

from __future__ import annotations

from compress.prune.methods.block_influence import BlockInfluence

MethodSettings = BlockInfluence
"""What a prune stage's `method:` may be; a union on `kind` as soon as there is a second method."""

__all__ = ["BlockInfluence", "MethodSettings"]
