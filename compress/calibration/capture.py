"""Layer inputs of a model, seen while it runs on logged denoiser inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.calibration.sampler import Denoise, Progress, denoise_with
from compress.calibration.store import Record, Trajectory
from compress.config import suggest
from compress.errors import UnsupportedLayer
from compress.files import write_atomically
from compress.models.adapter import Adapter

Observer = Callable[[Tensor, Tensor], None]
"""Sees the input of one layer (first dimension: batch, or batch times tokens) and the noise levels `[b]`."""


class Tap:
    """What hooked layers report; `sigma` is the noise levels `[b]` of the batch that runs."""

    def __init__(self, fn: Callable[[str, Tensor, Tensor], None]) -> None:
        self.fn = fn
        self.sigma = torch.empty(0)

    def __call__(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        self.fn(name, x.detach(), self.sigma)


@contextmanager
def capture(model: nn.Module, layer_names: Iterable[str], fn: Callable[[str, Tensor, Tensor], None]) -> Iterator[Tap]:
    """Inside the block every forward calls `fn(layer_name, input, sigma)` for these layers, just before each runs.

    Set `sigma` of the tap that the block is given before each forward. Hooks are gone after the block, whatever
    happens in it. A layer that runs twice in one forward is seen twice. The input is not a copy: do not write to it.

    Raises:
        UnsupportedLayer: the model has no layer of that name.
    """
    tap = Tap(fn)
    handles = []
    try:
        for name in layer_names:
            layer = _layer(model, name)
            handles.append(layer.register_forward_pre_hook(partial(tap, name), with_kwargs=True))
        yield tap
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_over(
    adapter: Adapter,
    model: nn.Module,
    trajectory: Trajectory,
    observers: Mapping[str, Observer],
    batch_size: int = 16,
    progress: Progress | None = None,
) -> None:
    """Run the model once over the whole trajectory; every observer sees all inputs of its layer.

    Args:
        observers: by layer name.
        batch_size: denoiser inputs that run together; both halves count.
        progress: called with (denoiser inputs done, in all).

    Raises:
        UnsupportedLayer: the model has no layer of that name.
    """
    denoise, device, done = denoise_with(adapter, model), _device(model), 0
    with capture(model, observers, lambda name, x, sigma: observers[name](x, sigma)) as tap:
        for batch in trajectory.batches(batch_size):
            _forward(denoise, batch.to(device), tap)
            done += len(batch.t)
            if progress is not None:
                progress(done, len(trajectory))


@torch.no_grad()
def layer_inputs(adapter: Adapter, model: nn.Module, record: Record, layer_names: Iterable[str]) -> dict[str, Tensor]:
    """Input of every named layer, on the CPU, in one forward on `record`; the first where a layer runs more than once.

    For parity checks that feed every layer its recorded input; bound it through the size of `record`.
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor, sigma: Tensor) -> None:
        if name not in inputs:
            inputs[name] = x.to("cpu", copy=True).contiguous()

    with capture(model, layer_names, keep) as tap:
        _forward(denoise_with(adapter, model), record.to(_device(model)), tap)
    return inputs


def save_inputs(path: Path, inputs: Mapping[str, Tensor]) -> None:
    """Write recorded layer inputs as safetensors, atomically. Raises OutputError."""
    write_atomically(path, lambda partial_path: save_file(dict(inputs), partial_path))


def load_inputs(path: Path) -> dict[str, Tensor]:
    """What `save_inputs` wrote."""
    return dict(load_file(path))


def _forward(denoise: Denoise, batch: Record, tap: Tap) -> None:
    tap.sigma = batch.sigma
    denoise(batch.sample, batch.t, batch.condition)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        near = suggest(name, [known for known, _ in model.named_modules(remove_duplicate=False)])
        hint = f"did you mean `{near}`?" if near else "see `compress inspect` for the layers"
        raise UnsupportedLayer("the model has no such layer", where=name, hint=hint) from error


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
