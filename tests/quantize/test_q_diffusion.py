"""Q-Diffusion: settings of the paper, split layers, and whole runs whose files are what was learned."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from learned import STATIC, job_for, logged, one_layer, tiny_adapter
from torch import Tensor, nn

from compress.api import load, run
from compress.errors import RecipeError
from compress.formats import WeightSpec
from compress.models.source import open_adapter, resolve
from compress.quantize.calibrated import Simulation, learn_weights, open_simulation, packed_layers
from compress.quantize.methods import q_diffusion
from compress.quantize.methods.q_diffusion import QDiffusion
from compress.quantize.ranges import RangeSearch, search_scales
from compress.quantize.settings import ActivationSettings, WeightSettings
from compress.quantize.simulate import SimulatedLayer, set_state
from compress.quantize.spec import LayerSpec
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan

FEW = {"kind": "q_diffusion", "iterations": 8, "batch_size": 8, "learning_rate": 0.02, "inputs": 16}
STAGE = {
    "kind": "quantize",
    "method": FEW,
    "weights": {"format": "int4", "symmetric": False},
    "activations": {"format": "int8", "granularity": "tensor", "mode": "static", "symmetric": False},
}


def skip_layer(split: int | None, bits: int = 4, *, inputs: bool = False) -> SimulatedLayer:
    """A 1x1 convolution of 12 channels, the last 5 of them the skip, with weights of ranges 1 and 200."""
    layer = nn.Conv2d(12, 6, 1).requires_grad_(False)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.weight[:, 7:] *= 200
        layer.bias.copy_(torch.randn(6, generator=generator))
    activations = one_layer(WeightSettings(format="int4"), STATIC)[0].spec.activations if inputs else None
    return SimulatedLayer("skip", layer, LayerSpec(WeightSpec(f"int{bits}"), activations, split=split))


def searched(layer: SimulatedLayer) -> SimulatedLayer:
    for part in layer.operators():
        part.set_grid(search_scales(part.weight, part.spec.weights, RangeSearch()))
    return layer


def test_the_defaults_are_the_papers() -> None:
    settings = QDiffusion()
    assert settings.mode == "paper"
    weights, steps = settings.rounding(), settings.steps()
    assert steps is not None
    assert (weights.iterations, weights.batch_size, weights.learning_rate) == (20_000, 32, 1e-3)
    assert (weights.regularizer, weights.warmup, weights.beta_start, weights.beta_end) == (0.01, 0.2, 20, 2)
    assert (weights.norm, steps.norm) == (2.0, 2.4)
    assert (steps.iterations, steps.batch_size, steps.learning_rate) == (5_000, 32, 4e-4)
    assert settings.ranges.factors() == pytest.approx([1 - 0.01 * k for k in range(80)])


def test_input_scales_get_a_quarter_of_the_iterations_unless_told() -> None:
    assert QDiffusion(iterations=500).steps().iterations == 125
    assert QDiffusion(iterations=1).steps().iterations == 1
    assert QDiffusion(iterations=500, step_iterations=7).steps().iterations == 7
    assert QDiffusion(step_iterations=0).steps() is None


def test_formats_without_an_even_grid_are_refused() -> None:
    layers = one_layer(WeightSettings(format="nf4"), ActivationSettings())
    with pytest.raises(RecipeError, match=r"`q_diffusion` works on integer grids, `layer` has nf4"):
        q_diffusion.prepare(QDiffusion(), layers, None)


def test_halves_with_equal_scales_are_the_whole() -> None:
    """Specification, section 3f."""
    whole, halves = searched(skip_layer(None, inputs=True)), skip_layer(7, inputs=True)
    [one] = whole.operators()
    for part in halves.operators():
        part.set_grid(one.scales)
        part.inputs.scale.data.fill_(0.03)
        part.inputs.zero.fill_(128)
    one.inputs.scale.data.fill_(0.03)
    one.inputs.zero.fill_(128)
    x = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(1))
    set_state([whole, halves], rounding="nearest", activations=True)
    assert torch.allclose(whole(x), halves(x), rtol=1e-5, atol=1e-3)  # outputs are of the order of 1000


def test_halves_of_different_range_gain_by_scales_of_their_own() -> None:
    """Ranges 1 and 200 (specification, section 3f): a scale for both rounds the small half away."""
    whole, halves = searched(skip_layer(None)), searched(skip_layer(7))
    set_state([whole, halves], rounding="nearest")
    x = torch.zeros(2, 12, 5, 5)
    x[:, :7] = torch.randn(2, 7, 5, 5, generator=torch.Generator().manual_seed(1))
    exact = whole.layer(x)
    assert float((halves(x) - exact).square().mean()) < 0.05 * float((whole(x) - exact).square().mean())


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Tensor, list[str]]]:
    """Runs the method on a tiny U-Net in a mode; gives all codes and input scales, and what was noted."""
    folder = tmp_path_factory.mktemp("learn")
    adapter = tiny_adapter(folder / "model", "unet")
    trajectory = logged(adapter, folder / "log", samples=4, steps=3)

    def run_once(mode: str) -> tuple[Tensor, list[str]]:
        job = job_for(adapter, trajectory, Path(mkdtemp(dir=folder)))
        layers = q_diffusion.run(QDiffusion(**FEW, mode=mode), job)
        parts = [part for layer in layers for part in layer.parts]
        values = [torch.cat([p.weight.codes.flatten().float(), *p.inputs.values()]) for p in parts]
        return torch.cat(values), job.calibration.progress.lines

    return run_once


def test_learning_is_repeatable_and_wins_and_compat_is_another_way(learn: Callable) -> None:
    (first, lines), (again, _), (compat, _) = learn("paper"), learn("paper"), learn("compat")
    assert torch.equal(first, again)
    assert not torch.equal(first, compat)
    [share] = [re.search(r"learn rounding: .* (\d+)% of before", line) for line in lines if "learn rounding" in line]
    assert int(share[1]) < 90


@pytest.mark.slow
def test_learned_rounding_beats_nearest_on_a_trained_model(tmp_path: Path) -> None:
    """Predicted noise of digits-dit, 4-bit weights in the same ranges, on inputs that learning did not see."""
    adapter = open_adapter(resolve("zoo://digits-dit"))
    seen = logged(adapter, tmp_path / "seen", samples=2, steps=8)
    others = logged(adapter, tmp_path / "others", samples=2, steps=8, seed=1)
    job = job_for(adapter, seen, tmp_path / "work", activations=ActivationSettings())
    batch = next(others.batches(32))

    @torch.no_grad()
    def predict(model: nn.Module) -> Tensor:
        output = adapter.denoise(model, batch.sample, batch.t, batch.condition)
        return adapter.noise_schedule().to_epsilon(output, batch.sample, batch.t)

    settings, errors = QDiffusion(iterations=16, batch_size=8, learning_rate=0.03), {}
    exact = predict(adapter.load())
    with open_simulation(job, settings.ranges) as simulation:
        for rounding in ("nearest", "hard"):
            if rounding == "hard":
                learn_weights(simulation, settings.rounding())
            set_state(simulation.layers, rounding=rounding)
            errors[rounding] = float((predict(simulation.model) - exact).square().mean())
    assert errors["hard"] < 0.6 * errors["nearest"]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Filled while a run packs: what every hard simulated layer receives and gives, by name."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            seen.setdefault(name, (args[0].clone(), y.clone()))

        return hook

    def packed(simulation: Simulation) -> Iterator:
        set_state(simulation.layers, rounding="hard", activations=True)
        handles = [layer.register_forward_hook(watch(name)) for name, layer in simulation.layers.items()]
        adapter = simulation.calibration.adapter
        inputs = adapter.example_inputs(3)
        with torch.no_grad():
            adapter.denoise(simulation.model, inputs.sample, inputs.timestep.float(), inputs.condition)
        for handle in handles:
            handle.remove()
        yield from packed_layers(simulation)

    monkeypatch.setattr(q_diffusion, "packed_layers", packed)
    return seen


@pytest.mark.parametrize("family", ["dit", "unet"])
def test_a_run_packs_what_was_learned(family: str, recipe_file, tmp_path: Path, kept: dict) -> None:
    """The reloaded layers compute what the hard simulation computed, and take the bytes that the plan said."""
    adapter = tiny_adapter(tmp_path / "model", family)
    model = {"source": adapter.source.folder, "device": "cpu"}
    path = recipe_file(model=model, stages=[STAGE], evaluate=[], gates=[])
    plan = make_plan(load_recipe(path))
    run(path, output=tmp_path / "out")
    files = list((tmp_path / "out" / "checkpoint" / adapter.source.denoiser).glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == plan.predicted_bytes
    reloaded = load(tmp_path / "out" / "checkpoint")
    assert len(kept) > 10
    for name, (x, y) in kept.items():
        with torch.no_grad():
            found = reloaded.get_submodule(name)(x)
        assert float((found - y).norm()) <= 1e-5 * float(y.norm()), name


def file_hashes(folder: Path) -> dict[str, str]:
    files = sorted((folder / "checkpoint").rglob("*.safetensors"))
    assert files
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(recipe_file, tmp_path: Path) -> None:
    """SIGKILL once some units are learned: they are read back, the others learned, and the files are the same."""
    adapter = tiny_adapter(tmp_path / "model", "unet")
    path = recipe_file(model={"source": adapter.source.folder, "device": "cpu"}, stages=[STAGE], evaluate=[], gates=[])
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    command = [sys.executable, "-m", "compress", "run", str(path), "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(undisturbed)], check=True, capture_output=True, env=environment)
    process = subprocess.Popen(
        [*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    while process.poll() is None and len(learned_units(killed)) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    before = learned_units(killed)
    assert len(before) >= 3
    done = subprocess.run([*command, str(killed)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert file_hashes(killed) == file_hashes(undisturbed)


def learned_units(folder: Path) -> list[Path]:
    """Files of finished units in a run's work folder."""
    return list(folder.rglob("rounding-*.safetensors"))
