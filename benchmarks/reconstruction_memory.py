"""Memory of block reconstruction: gigabytes of captured activations under a small budget.

    python -m benchmarks.reconstruction_memory --gigabytes 0.5
    python -m benchmarks.reconstruction_memory --gigabytes 4 --budget 1 --output reports/reconstruction-memory.json

A child process captures a synthetic wide block of a denoiser (its inputs and outputs take `--gigabytes`), learns its
rounding for a few iterations and its input scales for as many, while a thread of it watches anonymous plus shared
memory (RssAnon + RssShmem of /proc/self/status). What it takes beyond the imports must stay below the budget. The page
cache of the files is the system's and does not count. Linux only; the disk must hold the activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.kernels import machine
from compress.calibration import Record
from compress.calibration.sampler import stream_seed
from compress.files import write_text_atomically
from compress.formats import WeightSpec, weight_scales
from compress.models.adapter import LayerInfo, Role
from compress.quantize.job import Calibration
from compress.quantize.observers import StaticScale
from compress.quantize.reconstruct import Reconstruction, RoundingSettings, StepSettings
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings
from compress.quantize.simulate import simulate
from compress.quantize.spec import ActivationSpec, LayerSpec

GB = 2**30
CHANNELS, SIZE, LATENTS, GROUPS = 256, 32, 4, 16
BATCH = 8  # tensors of 8 MiB, which the allocator keeps for the next iteration
ROW_BYTES = 2 * CHANNELS * SIZE * SIZE * 4  # input and output of the block
SPEC = LayerSpec(WeightSpec("int4"), ActivationSpec("int8", "static"))


class WideBlock(nn.Module):
    """Two 1x1 convolutions in groups and a residual: little arithmetic for much activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 1, groups=GROUPS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 1, groups=GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(nn.functional.silu(self.conv1(x)))
        return y


class WideDenoiser(nn.Module):
    """A stem, the block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(LATENTS, CHANNELS, 1), WideBlock()
        self.head = nn.Conv2d(CHANNELS, LATENTS, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        y: Tensor = self.head(self.block(self.stem(sample)))
        return y


class WideAdapter:
    """What the engine asks an adapter."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The one block."""
        return [("block", model.get_submodule("block"))]

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        """One forward."""
        y: Tensor = model(sample, timestep)
        return y


class DrawnTrajectory:
    """Denoiser inputs that are drawn when they are asked for, so that they take no memory."""

    hash = "drawn"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def select(self, entries: Tensor, size: int) -> Iterator[Record]:
        """Batches of these rows."""
        for part in torch.split(entries, size):
            generators = [torch.Generator().manual_seed(stream_seed(0, "rows", int(row))) for row in part]
            sample = torch.stack([torch.randn(LATENTS, SIZE, SIZE, generator=generator) for generator in generators])
            t = (part % 1000).float()
            yield Record(sample, t, t, {}, torch.zeros_like(part), part)


class Watch:
    """The largest anonymous plus shared memory of this process while it is open, bytes."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, own_memory())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, own_memory())


def own_memory() -> int:
    """RssAnon + RssShmem of this process, bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def child(gigabytes: float, budget: float, iterations: int, folder: Path) -> dict[str, Any]:
    """Reconstruct the block in this process, and measure it."""
    torch.set_num_threads(1)
    baseline, started = own_memory(), time.perf_counter()
    rows = max(2, round(gigabytes * GB / ROW_BYTES))
    with Watch() as watch:
        engine = _engine(rows, int(budget * GB), folder)
        (unit,) = engine.units
        learn = RoundingSettings(iterations=iterations, learning_rate=1e-2, batch_size=BATCH)
        rounding = engine.learn_rounding(unit, learn)
        steps = engine.learn_steps(unit, StepSettings(iterations=iterations, batch_size=BATCH), asymmetric=True)
    return {
        "gigabytes": gigabytes,
        "rows": rows,
        "captured_bytes": rows * ROW_BYTES,
        "budget_bytes": int(budget * GB),
        "baseline_bytes": baseline,
        "peak_bytes": watch.peak - baseline,
        "iterations": iterations,
        "seconds": time.perf_counter() - started,
        "losses": {report.phase: [report.nearest_loss, report.last_loss] for report in (rounding, steps)},
    }


def _engine(rows: int, budget: int, folder: Path) -> Reconstruction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WideDenoiser().eval()
    infos = [
        LayerInfo(f"block.{name}", "conv2d", Role.CONV, "block", (CHANNELS, CHANNELS // GROUPS, 1, 1), True)
        for name in ("conv1", "conv2")
    ]
    layers = simulate(model, [Assignment(info, SPEC, ActivationSettings()) for info in infos])
    for layer in layers.values():
        for part in layer.operators():
            part.set_grid(weight_scales(part.weight, part.spec.weights))
            assert part.inputs is not None
            part.inputs.set(StaticScale(torch.tensor([0.02]), None))
    adapter: Any = WideAdapter()
    trajectory: Any = DrawnTrajectory(rows)
    calibration = Calibration(adapter, WideDenoiser, lambda: trajectory, folder, memory_budget=budget)
    return Reconstruction(calibration, model, layers, None, 0)


def measure(gigabytes: float, budget: float, iterations: int, folder: Path | None = None) -> dict[str, Any]:
    """Run the child in a temporary folder within `folder` and give back what it measured."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        sizes = ["--gigabytes", str(gigabytes), "--budget", str(budget), "--iterations", str(iterations)]
        command = [sys.executable, "-m", "benchmarks.reconstruction_memory", "--child", work, *sizes]
        root = Path(__file__).resolve().parents[1]
        text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 when the budget was exceeded."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--gigabytes", type=float, default=0.5, help="inputs and outputs of the block, of 2^30 bytes")
    found.add_argument("--budget", type=float, default=1.0, help="memory beyond the imports, of 2^30 bytes")
    found.add_argument("--iterations", type=int, default=5, help="of each phase")
    found.add_argument("--work", type=Path, help="folder for the activations; by default the system's temporary one")
    found.add_argument("--output", type=Path, metavar="FILE.json")
    found.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = found.parse_args(arguments)
    if given.child is not None:
        print(json.dumps(child(given.gigabytes, given.budget, given.iterations, given.child)))
        return 0
    measured = measure(given.gigabytes, given.budget, given.iterations, given.work)
    text = json.dumps({"machine": machine(), **measured}, indent=1) + "\n"
    print(text, end="")
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(given.output, text)
    within = bool(measured["peak_bytes"] <= measured["budget_bytes"])
    print(f"{measured['peak_bytes'] / GB:.2f} GiB at most, {'within' if within else 'BEYOND'} {given.budget:g} GiB")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
