"""Sees what one module of a model receives and returns, in a forward that ends there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.calibration.sampler import Denoise
from compress.calibration.store import Record
from compress.errors import UnsupportedLayer

TENSOR = object()
"""Stands in a template where a tensor was."""


class _Seen(Exception):
    """Ends a forward: the rest of the model need not run."""


class Seeing(NamedTuple):
    """What one forward showed of the unit: its arguments with `TENSOR` in the place of tensors, those, and outputs."""

    template: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class Tap:
    """Runs forwards up to one module."""

    def __init__(self, module: nn.Module, name: str, device: str) -> None:
        self.module, self.name, self.device = module, name, device

    @torch.no_grad()
    def see(self, denoise: Denoise, record: Record, *, inputs: bool = True, outputs: bool = False) -> Seeing:
        """What the module receives in one forward on `record`, what it returns, or both. Raises UnsupportedLayer."""
        found: list[Seeing] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if outputs and found:
                return  # it calls itself
            tensors: list[Tensor] = []
            # Copies: what runs next may write into them.
            keep = (args, kwargs) if inputs else ()
            template = replace_leaves(keep, lambda leaf: _set_aside(leaf, tensors, copy=outputs))
            found.append(Seeing(template, tensors, []))
            if not outputs:
                raise _Seen

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            found[0] = found[0]._replace(outputs=tensors_of(result))
            raise _Seen

        handles = [self.module.register_forward_pre_hook(before, with_kwargs=True)]
        if outputs:
            handles.append(self.module.register_forward_hook(after, with_kwargs=True))
        record = record.to(self.device)
        try:
            denoise(record.sample, record.t, record.condition)
        except _Seen:
            return found[0]
        finally:
            for handle in handles:
                handle.remove()
        raise UnsupportedLayer("the model's forward never calls this unit", where=self.name, hint="keep its layers")


def same_template(one: Any, other: Any) -> bool:
    """Whether two templates hold the same flags and numbers; objects that nobody can compare count as the same."""
    leaves: list[Any] = []
    replace_leaves(one, leaves.append)
    others: list[Any] = []
    replace_leaves(other, others.append)
    plain = (bool, int, float, str, type(None))
    return len(leaves) == len(others) and all(
        a == b if isinstance(a, plain) or isinstance(b, plain) else type(a) is type(b)
        for a, b in zip(leaves, others, strict=True)
    )


def _set_aside(leaf: Any, tensors: list[Tensor], *, copy: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    tensors.append(leaf.detach().clone() if copy else leaf.detach())
    return TENSOR


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors within nested tuples, lists, dictionaries and model outputs, in order."""
    found: list[Tensor] = []
    replace_leaves(value, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found


def replace_leaves(value: Any, replace: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists and dictionaries with every leaf replaced; tuple types keep their names."""
    if isinstance(value, dict):
        return {key: replace_leaves(item, replace) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replace_leaves(item, replace) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(replace_leaves(item, replace) for item in value)
    return replace(value)
