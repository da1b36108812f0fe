"""What the layers of a model read in one real forward, for tests of the paths through it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from compress.models.adapter import Adapter, DenoiserInputs


def inputs_of_layers(adapter: Adapter, model: nn.Module, inputs: DenoiserInputs) -> dict[str, Tensor]:
    """Input of every linear and convolution at its first call, in the order of those calls."""
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, arguments[0].clone())

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                hooks.enter_context(module.register_forward_pre_hook(record(name)))
        adapter.denoise(model, *inputs)
    return seen
