"""QuEST: what it selects and decides, what training may change and what must stay (specification, section 5f)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from learned import INT4, STATIC, Notes, job_for, logged, one_layer, tiny_adapter
from tiny import config_only_folder, tiny_model
from torch import Tensor, nn

from compress.api import load, run
from compress.calibration.trajectory import Record, Trajectory
from compress.errors import RecipeError, RunError
from compress.formats import WeightSpec, weight_scales
from compress.models.adapter import Adapter, LayerInfo, Role
from compress.models.roles import describe_layers
from compress.models.source import open_adapter, resolve
from compress.quantize import alignment
from compress.quantize.alignment import (
    PROGRESS_FILE,
    CriticalAlignment,
    Stages,
    TimeAlignment,
    critical_layers,
    critical_objective,
    embedding_projections,
    fine_tune,
    rows_by_timestep,
    time_objective,
)
from compress.quantize.calibrated import Simulation, learn_weights, open_simulation
from compress.quantize.finetune import Descent, Objective, Student, take_step
from compress.quantize.job import Calibration, QuantizeJob
from compress.quantize.methods import quest
from compress.quantize.methods.quest import Quest, measure, prepare
from compress.quantize.modules import packed_layer
from compress.quantize.ranges import RangeSearch
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings, WeightSettings
from compress.quantize.simulate import SimulatedLayer, set_state
from compress.quantize.spec import LayerSpec
from compress.quantize.tuned import TunedPart, floor_through, tune_parts
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan

INPUT4 = STATIC.model_copy(update={"format": "int4"})
TIME = TimeAlignment(epochs=2, samples=4, learning_rate=1e-3, scale_learning_rate=1e-3)
CRITICAL = CriticalAlignment(epochs=2, samples=8, learning_rate=1e-3, scale_learning_rate=3e-3)
SHORT_TIME = TIME.model_copy(update={"samples": 2})
SHORT_CRITICAL = CRITICAL.model_copy(update={"samples": 2})
FEW = {"iterations": 2, "batch_size": 4, "learning_rate": 0.01, "inputs": 8, "ranges": RangeSearch(kind="max")}
SHORT = Quest(**FEW, time=SHORT_TIME, critical=SHORT_CRITICAL)
OUTPUT_ONLY = Objective((), 0.0, 1.0)

# The facts of two public configurations, without weights.
LDM4_LSUN = {
    "_class_name": "UNet2DModel",
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
}


@dataclass
class Around:
    """What a method is told of its surroundings."""

    known: tuple[float, ...]

    def conditioning(self) -> frozenset[str]:
        return frozenset()

    def timesteps(self) -> tuple[float, ...]:
        return self.known


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Trajectory, Trajectory]:
    """A tiny U-Net, its trajectory, and one from other noise."""
    folder = tmp_path_factory.mktemp("unet")
    adapter = tiny_adapter(folder / "model", "unet")
    return adapter, logged(adapter, folder / "log"), logged(adapter, folder / "held", samples=12)


def timesteps_of(trajectory: Trajectory) -> tuple[float, ...]:
    return tuple(sorted({float(t) for batch in trajectory.batches(64) for t in batch.t}))


def prepared_job(
    adapter: Adapter, trajectory: Trajectory, work: Path, settings: Quest, activations: ActivationSettings = INPUT4
) -> QuantizeJob:
    job = job_for(adapter, trajectory, work, activations=activations)
    assignments = prepare(settings, job.assignments, Around(timesteps_of(trajectory)))
    return replace(job, assignments=tuple(assignments), static_scales={})


@contextmanager
def started(job: QuantizeJob, settings: Quest) -> Iterator[Simulation]:
    """A model that fine-tuning may begin with: rounded to nearest, but for the first unit, where it is learned."""
    factors, scales = measure(job, settings.smoothing)
    job = replace(job, static_scales=scales)
    with open_simulation(job, settings.ranges, inputs=settings.inputs, factors=factors) as simulation:
        later = frozenset(name for unit in simulation.units[1:] for name in unit.layers)
        learn_weights(simulation, settings.rounding(), frozen=later)
        set_state(simulation.layers, rounding="hard", activations=True)
        yield simulation


def stages(time: TimeAlignment = TIME, critical: CriticalAlignment = CRITICAL) -> Stages:
    return Stages(time, critical, "paper", 4)


def digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def codes(simulation: Simulation) -> dict[str, str]:
    parts = {part.part.of(n): part for n, layer in simulation.layers.items() for part in layer.operators()}
    return {name: digest(part.codes()) for name, part in parts.items()}


def model_error(simulation: Simulation, rows: Trajectory) -> float:
    """Mean squared error of the quantized model's output."""
    adapter = simulation.calibration.adapter
    student = Student(lambda x, t, c: adapter.denoise(simulation.model, x, t, c), simulation.layers)
    total = 0.0
    with torch.no_grad():
        for batch in rows.batches(16):
            target = student.original(batch, ())
            total += float(student.losses(batch, target, OUTPUT_ONLY).overall) * len(batch.t)
    return total / len(rows)


def test_the_defaults_are_the_papers() -> None:
    settings = Quest()
    assert (settings.mode, settings.batch_size, settings.iterations) == ("paper", 16, 20_000)
    time, critical = settings.time, settings.critical
    assert (time.epochs, time.samples, time.step_samples) == (200, 8, 2)
    assert (time.learning_rate, time.scale_learning_rate) == (1e-5, 1e-5)
    assert (critical.epochs, critical.samples, critical.step_samples) == (20, 64, 4)
    assert (critical.learning_rate, critical.scale_learning_rate) == (1e-5, 1e-4)
    assert settings.smoothing is not None
    assert settings.smoothing.alpha == 1


def layer(role: Role, activations: ActivationSettings, name: str = "layer") -> Assignment:
    [found] = one_layer(INT4, activations)
    return replace(found, info=replace(found.info, role=role, name=name))


def test_four_bit_inputs_are_folded_and_have_scales_per_timestep() -> None:
    times = (1.0, 251.0)
    given = [layer(role, INPUT4) for role in (Role.CONV, Role.TIME_EMBEDDING, Role.IN_PROJECTION, Role.OUT_PROJECTION)]
    plain, embedding, first, last = prepare(Quest(), given, Around(times))
    assert plain.spec.smooth
    assert plain.spec.activations.timesteps == times
    assert embedding.spec.smooth
    assert embedding.spec.activations.timesteps == ()  # one set for the time layers
    for end in (first, last):
        assert end.spec.activations.format == end.activations.format == "int8"
        assert end.spec.weights.format == "int4"
        assert not end.spec.smooth
    _, embedding, _, _ = prepare(Quest(mode="compat"), given, Around(times))
    assert embedding.spec.activations.timesteps == times
    plain, _, first, _ = prepare(Quest(smoothing=None, wide_ends=False), given, Around(times))
    assert not plain.spec.smooth
    assert first.spec.activations.format == "int4"


def test_what_prepare_leaves_alone() -> None:
    dynamic = layer(Role.CONV, ActivationSettings(format="int8"))
    kept = replace(dynamic, spec=None)
    assert prepare(Quest(), [dynamic, kept], Around((1.0,))) == [dynamic, kept]
    [eight] = prepare(Quest(), [layer(Role.CONV, STATIC)], Around((1.0,)))
    assert not eight.spec.smooth
    with pytest.raises(RecipeError, match="`quest` works on integer grids"):
        prepare(Quest(), one_layer(WeightSettings(format="nf4"), ActivationSettings()), Around(()))


def test_critical_layers_of_each_kind_of_model(tmp_path: Path) -> None:
    def infos(family: str) -> list[LayerInfo]:
        adapter = tiny_adapter(tmp_path / family, family)
        return adapter.layers(adapter.skeleton())

    def last_parts(names: list[str]) -> set[str]:
        return {name.rpartition(".")[2] for name in names}

    unet, dit = infos("unet"), infos("dit")
    assert last_parts(embedding_projections(unet)) == {"time_emb_proj"}
    assert last_parts(critical_layers(unet, "auto")) == {"to_q", "to_k", "to_v"}
    assert {layer.role for layer in dit if layer.name in embedding_projections(dit)} == {Role.MODULATION}
    assert last_parts(critical_layers(dit, "auto")) == {"to_q", "to_k", "to_v", "proj", "2"}
    text = describe_layers(tiny_model("UNet2DConditionModel"), ["down_blocks.0"])
    assert last_parts(critical_layers(text, "auto", text=True)) == {"proj", "2"}
    found = critical_layers(text, "transformer")
    assert any(name.endswith("attn1.to_k") for name in found)
    assert any(name.endswith("attn2.to_q") for name in found)
    assert not any(name.endswith(("attn2.to_k", "attn2.to_v")) for name in found)


def test_share_of_ldm4_that_is_trained(tmp_path: Path) -> None:
    """Each stage by its layers in the released code: 4.2 % and 8.8 %. The quoted bound of 7 % for both is not met."""
    adapter = open_adapter(resolve(str(config_only_folder(tmp_path / "ldm", LDM4_LSUN))))
    skeleton = adapter.skeleton()
    every = sum(parameter.numel() for parameter in skeleton.parameters())
    layers = {info.name: info for info in adapter.layers(skeleton)}
    time = embedding_projections(list(layers.values()))
    critical = critical_layers(list(layers.values()), "auto")
    assert every == 274_056_163  # as published
    assert (len(time), len(critical)) == (22, 3 * 16)

    def share(names: list[str]) -> float:
        return sum(layers[name].weight_parameters for name in names) / every

    assert share(time) == pytest.approx(0.0425, abs=1e-4)
    assert share(critical) == pytest.approx(0.0884, abs=1e-4)


def test_terms_of_the_objective() -> None:
    names = ("a", "b", "c")
    assert time_objective(names, "paper") == Objective(names, 1.0, 1.0)
    assert critical_objective(names, "paper") == Objective(names, 1.0, 1.0)  # twice L_G in all
    assert time_objective(names, "compat") == Objective(names, 1.0, 3.0)
    assert critical_objective(names, "compat") == Objective((), 0.0, 3.0)


def simple_layer(spec: LayerSpec) -> SimulatedLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = SimulatedLayer("layer", nn.Linear(16, 5), spec)
    for part in found.operators():
        part.set_grid(weight_scales(part.weight, spec.weights))
    return found


@pytest.mark.parametrize("weights", [WeightSpec("int4"), WeightSpec("int4", "group", 8, False, "float16")])
@pytest.mark.parametrize("split", [None, 8])
def test_tuned_weights_begin_at_their_codes_and_may_cross_a_level(weights: WeightSpec, split: int | None) -> None:
    before = simple_layer(LayerSpec(weights, split=split))
    for part in before.operators():  # roundings of which many are not the nearest
        part.start_rounding()
        part.offset.data.copy_(torch.randn(part.offset.shape, generator=torch.Generator().manual_seed(1)))
        part.finish_rounding()
    chosen = [part.codes() for part in before.operators()]
    tune_parts([before])
    for part, wanted in zip(before.operators(), chosen, strict=True):
        assert isinstance(part, TunedPart)
        assert torch.equal(part.codes(), wanted)
        step = part.effective_weight("hard").detach().clone()
        part.tuned.requires_grad_(True)
        part.effective_weight("hard").sum().backward()
        inside = (wanted > 0) & (wanted < 15)
        assert bool((part.tuned.grad[inside] == 1).all())
        with torch.no_grad():
            part.tuned += 1.001 * part._expanded(part.scales.values())  # a little more, for the rounding of the sum
        levels = part.codes()[inside].int() - wanted[inside].int()
        assert set(levels.tolist()) <= {1, 2}
        assert float((levels == 1).float().mean()) > 0.9
        assert bool((part.effective_weight("hard").detach() > step)[inside].all())


def test_floor_passes_gradients() -> None:
    x = torch.tensor([-1.5, 0.2, 3.0], requires_grad=True)
    y = floor_through(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert y.tolist() == [-2, 0, 3]
    assert x.grad.tolist() == [1, 2, 3]


def test_rows_are_spread_over_timesteps(model: tuple[Adapter, Trajectory, Trajectory]) -> None:
    rows = rows_by_timestep(model[1], 5, seed=0)
    assert list(rows) == sorted(timesteps_of(model[1]), reverse=True)
    assert {len(record.t) for record in rows.values()} == {5}
    assert all(set(record.t.tolist()) == {t} for t, record in rows.items())
    assert {len(record.t) for record in rows_by_timestep(model[1], 1000, seed=0).values()} == {16}


@pytest.fixture(scope="module")
def tuned(
    model: tuple[Adapter, Trajectory, Trajectory], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Simulation, dict]]:
    """A model after both stages, with what it was before."""
    adapter, trajectory, held = model
    settings = Quest(**FEW)
    work = tmp_path_factory.mktemp("work")
    with started(prepared_job(adapter, trajectory, work, settings), settings) as simulation:
        parts = {part.part.of(n): part for n, layer in simulation.layers.items() for part in layer.operators()}
        before = {
            "weights": {name: digest(p) for name, p in simulation.model.named_parameters() if name.endswith("weight")},
            "biases": {name: digest(x.layer.bias) for name, x in simulation.layers.items() if x.layer.bias is not None},
            "codes": codes(simulation),
            "scales": {n: p.inputs.scale.detach().clone() for n, p in parts.items()},
            "grids": {n: digest(*(x for x in p.scales if x is not None)) for n, p in parts.items()},
            "zeros": {n: digest(p.inputs.zero) for n, p in parts.items()},
            "smooth": {n: digest(p.smooth) for n, p in parts.items() if p.smooth is not None},
            "error": model_error(simulation, held),
            "inputs": input_errors(simulation, held),
        }
        before["changed"] = fine_tune(simulation, stages())
        yield simulation, before


def input_errors(simulation: Simulation, rows: Trajectory) -> dict[str, float]:
    """Rounding error of every part's input in the quantized model, relative to the input's energy."""
    sums: dict[str, tuple[float, float]] = {}

    def look(name: str, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        error, energy = sums.get(name, (0.0, 0.0))
        sums[name] = (error + float((y - args[0]).square().sum()), energy + float(args[0].square().sum()))

    adapter = simulation.calibration.adapter
    set_state(simulation.layers, rounding="hard", activations=True)
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in simulation.layers.items():
            for part in layer.operators():
                hooks.enter_context(part.inputs.register_forward_hook(partial(look, part.part.of(name))))
        for batch in rows.batches(16):
            adapter.denoise(simulation.model, batch.sample, batch.t, batch.condition)
    return {name: error / energy for name, (error, energy) in sums.items()}


def test_only_selected_parameters_change(tuned: tuple[Simulation, dict]) -> None:
    simulation, before = tuned
    infos = [a.info for a in simulation.job.assignments]
    chosen = {*embedding_projections(infos), *critical_layers(infos, "auto")}
    assert before["changed"] == chosen
    originals = {n: digest(p) for n, p in simulation.model.named_parameters() if n in before["weights"]}
    assert originals == before["weights"]  # tuned weights are apart, the teacher is untouched
    found = codes(simulation)
    moved = {name for name in found if found[name] != before["codes"][name]}
    assert moved
    assert moved <= chosen
    for name, twin in simulation.layers.items():
        assert any(isinstance(part, TunedPart) for part in twin.operators()) == (name in chosen)
        if twin.layer.bias is not None:
            assert (digest(twin.layer.bias) != before["biases"][name]) == (name in chosen)


def test_weight_grids_and_zero_points_stay(tuned: tuple[Simulation, dict]) -> None:
    simulation, before = tuned
    for name, twin in simulation.layers.items():
        for part in twin.operators():
            key = part.part.of(name)
            assert digest(*(x for x in part.scales if x is not None)) == before["grids"][key]
            assert digest(part.inputs.zero) == before["zeros"][key]
            assert part.smooth is None or digest(part.smooth) == before["smooth"][key]
            assert bool((part.inputs.scale > 0).all())
            if isinstance(part, TunedPart):  # up or down is what rounding decided
                down = part._ratio(part.rows).floor()
                _, _, zero = part._limits()
                start = (down + part.up + part._expanded(zero)).clamp(0, 15).to(torch.uint8)
                assert digest(start) == before["codes"][key]


def test_the_error_falls_on_noise_that_was_held_out(tuned, model) -> None:
    simulation, before = tuned
    assert model_error(simulation, model[2]) < 0.97 * before["error"]  # 0.95 or so; threads change last bits


def test_selected_inputs_are_rounded_with_less_error(tuned, model) -> None:
    """Of the inputs whose scales are learned, on noise that was held out: most improve, and so does their mean.

    The paper lets ranges shrink to that end; where a measured range was too narrow already, learning widens it.
    """
    simulation, before = tuned
    after = input_errors(simulation, model[2])
    gains = [math.log(before["inputs"][name] / after[name]) for name in after if before["inputs"][name] > 0]
    assert sum(gains) > 0
    assert sum(gain > 0 for gain in gains) > len(gains) / 2


def test_a_step_at_one_timestep_changes_its_scales_alone(tuned, model) -> None:
    simulation, _ = tuned
    adapter = simulation.calibration.adapter
    student = Student(lambda x, t, c: adapter.denoise(simulation.model, x, t, c), simulation.layers)
    scales = {n: part.inputs.scale for n, x in simulation.layers.items() for part in x.operators()}
    before = {name: scale.detach().clone() for name, scale in scales.items()}
    times = timesteps_of(model[1])
    record = rows_by_timestep(model[1], 4, seed=3)[times[1]]
    descent = Descent((), list(scales.values()), 0.0, 1e-3)
    with descent.open():
        take_step(student, [(record, student.original(record, ()))], OUTPUT_ONLY, descent, 4)
    for name, scale in scales.items():
        changed = (scale.detach() != before[name]).nonzero().flatten().tolist()
        assert changed == ([1] if len(scale) > 1 else [0]), name
        scale.data.copy_(before[name])


def test_a_run_that_diverges_stops(tuned, model) -> None:
    """Integers of weights that are not finite would be noise."""
    simulation, _ = tuned
    adapter = simulation.calibration.adapter
    student = Student(lambda x, t, c: adapter.denoise(simulation.model, x, t, c) * float("nan"), simulation.layers)
    record = next(model[1].batches(2))
    descent = Descent((), (), 0.0, 0.0)
    with pytest.raises(RunError, match="not finite"):
        objective = Objective((), 0.0, 1.0)
        scale = next(part.inputs.scale for x in simulation.layers.values() for part in x.operators())
        scale.requires_grad_(True)
        try:
            take_step(student, [(record, student.original(record, ()))], objective, descent, 2)
        finally:
            scale.requires_grad_(False)
            scale.grad = None


def test_the_teacher_is_the_original_to_the_bit(tuned, model) -> None:
    """Even after weights and biases have moved."""
    simulation, _ = tuned
    adapter = simulation.calibration.adapter
    student = Student(lambda x, t, c: adapter.denoise(simulation.model, x, t, c), simulation.layers)
    biases = {name: digest(bias) for name, bias in student.biases.items()}
    original = adapter.load()
    for name in student.first_biases:
        student.first_biases[name] = original.get_submodule(name).bias
    record = next(model[2].batches(4))
    with torch.no_grad():
        expected = adapter.denoise(original, record.sample, record.t, record.condition)
    assert torch.equal(student.original(record, ()).prediction, expected)
    assert {name: digest(bias) for name, bias in student.biases.items()} == biases
    assert not torch.equal(student.outputs(record, ()).prediction, expected)


def finished(job: QuantizeJob, settings: Quest) -> dict[str, str]:
    """Hashes of everything that a whole run stores."""
    found = {}
    for packed in quest.run(settings, job):
        for number, part in enumerate(packed.parts):
            stored = (part.weight.codes, part.weight.scales, *part.inputs.values())
            found[f"{packed.name}.{number}"] = digest(*stored)
        if packed.bias is not None:
            found[f"{packed.name}.bias"] = digest(packed.bias)
    return found


def test_learning_rates_of_zero_give_the_start_model(model, tmp_path: Path) -> None:
    still = {"learning_rate": 0.0, "scale_learning_rate": 0.0}
    settings = Quest(**FEW)
    with started(prepared_job(*model[:2], tmp_path / "work", settings), settings) as simulation:
        before = stored(simulation)
        fine_tune(simulation, stages(SHORT_TIME.model_copy(update=still), SHORT_CRITICAL.model_copy(update=still)))
        assert stored(simulation) == before


def stored(simulation: Simulation) -> dict[str, str]:
    """Hashes of what packing would give, biases included."""
    found = {}
    for name, twin in simulation.layers.items():
        tensors = [t for part in twin.quantized().parts for t in (part.weight.codes, *part.inputs.values())]
        found[name] = digest(*tensors, *([] if twin.layer.bias is None else [twin.layer.bias]))
    return found


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run stores."""
    return finished(prepared_job(*model[:2], tmp_path_factory.mktemp("whole"), SHORT), SHORT)


@pytest.mark.parametrize("stop", [2, 5])
def test_a_killed_run_ends_with_the_same_bytes(model, whole, tmp_path: Path, monkeypatch, stop: int) -> None:
    """Stopped within either stage: momentum goes on, and nothing is done twice."""
    saved: list[int] = []

    def save(path: Path, layers, momentum, done: int) -> None:
        if len(saved) == stop:
            raise KeyboardInterrupt
        real(path, layers, momentum, done)
        saved.append(done)

    real = alignment.save_progress
    job = prepared_job(*model[:2], tmp_path / "killed", SHORT)
    monkeypatch.setattr(alignment, "save_progress", save)
    with pytest.raises(KeyboardInterrupt):
        finished(job, SHORT)
    monkeypatch.setattr(alignment, "save_progress", real)
    assert finished(job, SHORT) == whole
    notes = job.calibration.progress.lines
    assert sum("align" in line for line in notes) == 4 + 2 + 1  # of six pieces one was done twice: it was not saved


def test_unusable_progress_is_refused(model, tmp_path: Path) -> None:
    settings = Quest(**FEW)
    job = prepared_job(*model[:2], tmp_path / "work", settings)
    (tmp_path / "work" / PROGRESS_FILE).write_bytes(b"no tensors")
    with started(job, settings) as simulation, pytest.raises(RunError, match="unusable progress"):
        fine_tune(simulation, stages())


@pytest.mark.parametrize("activations", [INPUT4, STATIC, ActivationSettings(format="int8")], ids=["a4", "a8", "token"])
def test_packed_layers_compute_what_was_simulated(model, tmp_path: Path, activations: ActivationSettings) -> None:
    """The exported integer product, folded ratios and scales per timestep included, is the simulation's."""
    adapter, trajectory, _ = model
    job = prepared_job(adapter, trajectory, tmp_path / "work", SHORT, activations)
    with started(job, SHORT) as simulation:
        fine_tune(simulation, stages(SHORT_TIME, SHORT_CRITICAL))
        set_state(simulation.layers, rounding="hard", activations=True)
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            seen[name] = (args[0].detach(), y.detach())

        record = next(trajectory.batches(16))
        with ExitStack() as hooks, torch.no_grad():
            for name, twin in simulation.layers.items():
                hooks.enter_context(twin.register_forward_hook(partial(keep, name)))
            adapter.denoise(simulation.model, record.sample, record.t, record.condition)
        smoothed = 0
        for name, twin in simulation.layers.items():
            packed = packed_layer(twin.layer, twin.spec, "cpu")
            packed.fill_parts(twin.quantized().parts, twin.layer.bias)
            look_at(packed, record)
            found = packed(seen[name][0])
            assert float((found - seen[name][1]).norm()) <= 2e-5 * float(seen[name][1].norm()), name
            smoothed += twin.spec.smooth
    assert (smoothed > 10) == (activations is INPUT4)


def look_at(packed: nn.Module, record: Record) -> None:
    """Set the clocks of a packed layer, or of its halves."""
    for module in packed.modules():
        if getattr(module, "clock", None) is not None:
            module.clock.look(record.t, len(record.t))


def test_dit_and_compat_mode_run(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    trajectory = logged(adapter, tmp_path / "log")
    settings = SHORT.model_copy(update={"mode": "compat"})
    job = prepared_job(adapter, trajectory, tmp_path / "work", settings)
    stored = list(quest.run(settings, job))
    assert [layer.name for layer in stored] == [a.info.name for a in job.assignments]
    shapes = {
        a.info.name: len(part.inputs["input_scale"])
        for a, x in zip(job.assignments, stored, strict=True)
        for part in x.parts
    }
    assert set(shapes.values()) == {4}
    assert isinstance(job.calibration, Calibration)
    assert isinstance(job.calibration.progress, Notes)
    assert any("of the parameters" in line for line in job.calibration.progress.lines)


def test_a_recipe_at_four_bits_is_planned_packed_and_reloaded(recipe_file, tmp_path: Path) -> None:
    """Files take the bytes that the plan says; the reloaded model is what was simulated, not noise."""
    adapter = tiny_adapter(tmp_path / "model", "unet")
    method = SHORT.model_dump(mode="json")
    activations = {"format": "int4", "granularity": "tensor", "mode": "static", "symmetric": False}
    stage = {"kind": "quantize", "method": method, "weights": {"format": "int8"}, "activations": activations}
    path = recipe_file(model={"source": adapter.source.folder, "device": "cpu"}, stages=[stage], evaluate=[], gates=[])
    plan = make_plan(load_recipe(path))
    run(path, output=tmp_path / "out")
    files = list((tmp_path / "out" / "checkpoint" / adapter.source.denoiser).glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == plan.predicted_bytes
    reloaded, inputs = load(tmp_path / "out" / "checkpoint"), adapter.example_inputs(4)
    names = [name for name, module in reloaded.named_modules() if getattr(module, "input_smooth", None) is not None]
    assert len(names) > 10
    with torch.no_grad():
        exact, found = (
            adapter.denoise(model, inputs.sample, inputs.timestep.float(), inputs.condition)
            for model in (adapter.load(), reloaded)
        )
    assert 0 < float((found - exact).square().mean()) < 0.5 * float(exact.square().mean())
