"""A small denoiser whose units learn in a second, with a split layer in its block; and a calibration around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from learned import Notes
from torch import Tensor, nn

from compress.calibration import Record
from compress.formats import WeightSpec, weight_scales
from compress.models.adapter import LayerInfo, Role
from compress.quantize.clock import Clock, install_clock
from compress.quantize.job import Calibration
from compress.quantize.observers import StaticScale
from compress.quantize.reconstruct import Mode, Reconstruction
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings
from compress.quantize.simulate import SimulatedLayer, SimulatedPart, simulate
from compress.quantize.spec import ActivationSpec, LayerSpec

ROWS, TIMESTEPS = 48, (10.0, 500.0, 900.0)
SPEC = LayerSpec(WeightSpec("int3", symmetric=False), ActivationSpec("int8", "static", symmetric=False))


class ToyBlock(nn.Module):
    """Convolution, activation, then a 1x1 convolution over the concatenation of both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 6, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        y = nn.functional.silu(self.conv(x) + shift)
        return self.dropout(self.shortcut(torch.cat([y, x], 1)))


class Toy(nn.Module):
    """`head(block(stem(x), time(t)))`; `head` is defined first, and `idle` never runs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.head, self.time, self.stem = nn.Conv2d(6, 2, 1), nn.Linear(4, 6), nn.Conv2d(2, 6, 3, padding=1)
            self.block, self.idle = ToyBlock(), nn.Linear(3, 3)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        phase = timestep.reshape(-1, 1) / 1000 * torch.arange(1, 5)
        x = self.block(self.stem(sample), shift=self.time(phase.sin())[..., None, None])
        y: Tensor = self.head(x)
        return y


class ToyAdapter:
    """What the engine asks an adapter."""

    family = "toy"

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [("block", model.get_submodule("block"))]

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        y: Tensor = model(sample, timestep)
        return y


class ToyTrajectory:
    """A trajectory that is one record in memory."""

    def __init__(self, record: Record, name: str = "toy") -> None:
        self.record, self.hash = record, name

    def __len__(self) -> int:
        return len(self.record.t)

    def spread(self, n: int, seed: int, stream: str) -> Tensor:
        return torch.arange(n)

    def select(self, entries: Tensor, size: int) -> Iterator[Record]:
        for part in torch.split(entries, size):
            r = self.record
            yield Record(r.sample[part], r.t[part], r.sigma[part], {}, r.half[part], r.image[part])


def toy_record() -> Record:
    generator = torch.Generator().manual_seed(4)
    t = torch.tensor(TIMESTEPS)[torch.arange(ROWS) % len(TIMESTEPS)]
    sample = torch.randn(ROWS, 2, 6, 6, generator=generator)
    return Record(sample, t, t, {}, torch.zeros(ROWS).long(), torch.arange(ROWS))


def toy_assignments(spec: LayerSpec = SPEC) -> list[Assignment]:
    """Every layer of the toy with that spec; the shortcut is split at channel 6."""
    found = []
    for name, layer in Toy().named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            kind = "linear" if isinstance(layer, nn.Linear) else "conv2d"
            info = LayerInfo(name, kind, Role.CONV, None, tuple(layer.weight.shape), True)
            own = replace(spec, split=6) if name == "block.shortcut" else spec
            found.append(Assignment(info, own, ActivationSettings()))
    return found


def reconstruction(
    work: Path,
    *,
    spec: LayerSpec = SPEC,
    seed: int = 0,
    mode: Mode = "paper",
    rows: int | None = None,
    memory_budget: int | None = None,
    trajectory: str = "toy",
) -> Reconstruction:
    """An engine over a new toy with grids and input scales set; its work folder is `work`."""
    model = Toy().eval()
    clock = Clock(TIMESTEPS)
    install_clock(model, clock)
    layers = simulate(model, toy_assignments(spec), clock)
    for part in parts_of(layers):
        part.set_grid(weight_scales(part.weight, part.spec.weights))
        if part.inputs is not None and part.inputs.scale is not None:
            count = len(part.inputs.scale)
            zero = None if part.inputs.zero is None else torch.full((count,), 120.0)
            part.inputs.set(StaticScale(torch.full((count,), 0.05), zero))
    log: Any = ToyTrajectory(toy_record(), trajectory)
    adapter: Any = ToyAdapter()
    work.mkdir(parents=True, exist_ok=True)
    calibration = Calibration(adapter, Toy, lambda: log, work, memory_budget=memory_budget, progress=Notes())
    return Reconstruction(calibration, model, layers, clock, seed, rows, mode)


def parts_of(layers: dict[str, SimulatedLayer] | Any) -> list[SimulatedPart]:
    return [part for layer in layers.values() for part in layer.operators()]


def all_codes(engine: Reconstruction) -> list[Tensor]:
    """Codes of every part, in the layers' order."""
    return [part.codes() for part in parts_of(engine.layers)]


def all_steps(engine: Reconstruction) -> list[Tensor]:
    """Input scales of every part that has any."""
    found = [part.inputs.scale for part in parts_of(engine.layers) if part.inputs is not None]
    return [scale.detach().clone() for scale in found if scale is not None]
