"""TFMQ-DM: the temporal block by itself, learned without images, and what nothing else may change in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from learned import INT4, STATIC, Notes, job_for, logged, one_layer, tiny_adapter
from torch import Tensor, nn

from compress.calibration.sampler import denoise_with
from compress.errors import ModelError, RecipeError
from compress.evaluate.temporal_error import nearest_timesteps, temporal_errors
from compress.formats import WeightSpec
from compress.formats.layout import unpack_codes
from compress.models.adapter import Adapter, Role
from compress.models.conditioning import ConditioningGrid, capture_projections, conditioning_grid, projection_layers
from compress.models.source import open_adapter, resolve
from compress.quantize.calibrated import learn_weights, open_simulation
from compress.quantize.clock import Clock
from compress.quantize.finite_set import Extremes, calibrate_block, calibrate_layers, full_range, moving_range
from compress.quantize.job import QuantizeJob
from compress.quantize.methods import tfmq
from compress.quantize.methods.tfmq import Tfmq, visited_timesteps
from compress.quantize.ranges import RangeSearch
from compress.quantize.reconstruct import RoundingSettings
from compress.quantize.rules import Assignment, assign
from compress.quantize.settings import ActivationSettings, WeightSettings
from compress.quantize.simulate import SimulatedLayer, set_state, simulate
from compress.quantize.spec import ActivationSpec, LayerSpec
from compress.quantize.statistics import static_scales
from compress.quantize.temporal import TemporalBlock
from compress.quantize.temporal_rounding import learn_temporal_block

FEW = {"iterations": 12, "batch_size": 8, "learning_rate": 0.01}
TIMESTEPS = tuple(float(t) for t in range(1, 1000, 100))


@dataclass
class Around:
    """What a method may ask before anything is loaded."""

    adapter: Adapter
    visited: tuple[float, ...] = TIMESTEPS

    def conditioning(self) -> frozenset[str]:
        return frozenset(layer.name for layer in self.adapter.conditioning_layers(self.adapter.skeleton()))

    def timesteps(self) -> tuple[float, ...]:
        return self.visited


@dataclass
class Temporal:
    """The temporal block of a tiny model whose layers are simulated, nothing rounded yet."""

    adapter: Adapter
    model: torch.nn.Module
    layers: dict[str, SimulatedLayer]
    block: TemporalBlock
    grid: ConditioningGrid
    truth: dict[str, Tensor]

    def projections(self) -> dict[str, Tensor]:
        return capture_projections(self.adapter, self.model, self.grid, list(self.truth))

    def learn(self, work: Path, **settings: float):
        chosen = RoundingSettings.model_validate({"iterations": 80, "learning_rate": 0.03, **settings})
        return learn_temporal_block(self.block, self.layers, self.grid, chosen, seed=0, work=work)


def assignments_of(adapter: Adapter, bits: str = "int4", activations: ActivationSettings = STATIC) -> list[Assignment]:
    weights = WeightSettings(format=bits, symmetric=False)
    return assign(adapter.layers(adapter.skeleton()), weights, activations, ())


def temporal(adapter: Adapter, bits: str = "int4", timesteps: Sequence[float] = TIMESTEPS) -> Temporal:
    from compress.quantize.calibrated import make_clock, start_weights
    from compress.quantize.clock import install_clock

    names = Around(adapter).conditioning()
    chosen = [a for a in assignments_of(adapter, bits) if a.info.name in names]
    chosen = tfmq.prepare(Tfmq(), chosen, Around(adapter, tuple(timesteps)))
    model, grid = adapter.load(), conditioning_grid(adapter, timesteps)
    projections = [layer.name for layer in projection_layers(adapter, model)]
    truth = capture_projections(adapter, model, grid, projections)
    clock = make_clock(chosen)
    assert clock is not None
    install_clock(model, clock)
    layers = simulate(model, chosen, clock)
    start_weights(layers.values(), RangeSearch(kind="mse"))
    return Temporal(adapter, model, layers, TemporalBlock(adapter, model), grid, truth)


@pytest.fixture(params=["unet", "dit"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    return tiny_adapter(tmp_path / "model", request.param)


def cosines(truth: dict[str, Tensor], found: dict[str, Tensor]) -> Tensor:
    """Of all branches together, for every pair `[timesteps, classes]`."""
    sides = [torch.cat(list(side.values()), dim=-1) for side in (truth, found)]
    return torch.nn.functional.cosine_similarity(*sides, dim=-1)


# The block


def test_the_block_alone_computes_what_the_model_does(adapter: Adapter) -> None:
    it = temporal(adapter)
    it.block.check(it.grid)
    rows = it.block.rows(it.grid, torch.arange(len(it.grid)))
    with torch.no_grad():
        for share in (False, True):
            found = it.block.outputs(*rows, share=share)
            for output, expected in zip(found, it.truth.values(), strict=True):
                assert torch.allclose(output, expected.flatten(0, 1), atol=1e-5)
    assert set(it.layers) == set(it.block.layers)
    assert [branch.layer for branch in it.block.branches] == list(it.truth)


def test_a_model_that_computes_something_else_is_refused(adapter: Adapter) -> None:
    from compress.errors import UnsupportedLayer

    it = temporal(adapter)
    branch = it.block.branches[-1]
    it.block.branches = (*it.block.branches[:-1], branch._replace(activation=torch.nn.Identity()))
    with pytest.raises(UnsupportedLayer, match="something else within the model"):
        it.block.check(it.grid)


def test_eight_bits_keep_every_timestep(adapter: Adapter, tmp_path: Path) -> None:
    """Specification, section 4f: cosine >= 0.999 at W8 for every t, and each t is nearest to itself; also with A8."""
    it = temporal(adapter, "int8")
    it.learn(tmp_path / "work", iterations=40)
    calibrate_block(it.block, it.layers, it.grid)
    set_state(it.layers, rounding="hard", activations=True)
    found = it.projections()
    assert float(cosines(it.truth, found).min()) >= 0.999
    assert torch.equal(nearest_timesteps(it.truth, found), torch.arange(10)[:, None].expand(10, 11))


def test_four_bits_are_learned_better_than_rounded(adapter: Adapter, tmp_path: Path) -> None:
    it = temporal(adapter)
    set_state(it.layers, rounding="nearest")
    nearest = temporal_errors(it.truth, it.projections()).mean()
    report = it.learn(tmp_path / "work")
    learned = it.projections()
    assert temporal_errors(it.truth, learned).mean() < 0.8 * nearest
    assert report.last_loss < report.nearest_loss
    away = (nearest_timesteps(it.truth, learned) - torch.arange(10)[:, None]).abs()
    assert int(away.max()) <= 1


def test_what_the_blocks_are_told_is_the_same_for_every_image(adapter: Adapter, tmp_path: Path) -> None:
    it = temporal(adapter)
    it.learn(tmp_path / "work", iterations=5)
    calibrate_block(it.block, it.layers, it.grid)
    set_state(it.layers, rounding="hard", activations=True)
    zeros = {name: value.flatten(0, 1) for name, value in it.projections().items()}
    seen: dict[str, Tensor] = {}
    for name in it.truth:
        it.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    t, condition = it.grid.rows(torch.arange(len(it.grid)))
    with torch.no_grad():
        for start in range(0, len(t), 64):  # batches as `capture_projections` runs them
            part = {key: value[start : start + 64] for key, value in condition.items()}
            images = torch.randn(len(t[start : start + 64]), *adapter.sample_shape()) * 3
            adapter.denoise(it.model, images, t[start : start + 64], part)
            assert all(torch.equal(seen[name], zeros[name][start : start + 64]) for name in it.truth)


def test_what_is_finished_is_read_back(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    first, second, other = (temporal(adapter, timesteps=TIMESTEPS[:4]) for _ in range(3))
    reports = [it.learn(tmp_path / "work", iterations=5) for it in (first, second)]
    assert reports[0] == reports[1]  # seconds, too: nothing was learned anew
    again = other.learn(tmp_path / "elsewhere", iterations=5)
    assert again[:-1] == reports[0][:-1]
    for name, layer in first.layers.items():
        codes = [part.codes() for it in (first, second, other) for part in it.layers[name].operators()]
        assert all(torch.equal(codes[0], found) for found in codes), name
        assert layer.rounding == "hard"


def test_many_pairs_are_learned_in_batches(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    it = temporal(adapter)
    settings = RoundingSettings(iterations=40, learning_rate=0.02, batch_size=32)
    report = learn_temporal_block(
        it.block, it.layers, it.grid, settings, seed=0, work=tmp_path / "work", most_values=1000
    )
    assert report.last_loss < report.nearest_loss


# A DiT's copies of the embedder


def test_copies_of_an_embedder_are_rounded_alike(tmp_path: Path) -> None:
    it = temporal(tiny_adapter(tmp_path / "model", "dit"))
    one, two = (f"transformer_blocks.{n}.norm1.emb.timestep_embedder" for n in range(2))
    assert it.block.copies == {f"{two}.linear_{n}": f"{one}.linear_{n}" for n in (1, 2)}
    it.learn(tmp_path / "work", iterations=20)
    for n in (1, 2):
        [first], [second] = (it.layers[f"{name}.linear_{n}"].operators() for name in (one, two))
        assert torch.equal(first.codes(), second.codes())
        learned = first.codes()
        first.set_grid(first.scales)  # rounds to nearest again
        assert not torch.equal(first.codes(), learned)  # something was learned to copy


def test_embedders_that_differ_are_learned_each(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    model = adapter.load()
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.add_(1.0)
    block = TemporalBlock(adapter, model)
    assert block.leaders == {} == block.copies
    block.check(conditioning_grid(adapter, TIMESTEPS))
    t, condition = block.rows(conditioning_grid(adapter, TIMESTEPS), torch.arange(3))
    with torch.no_grad():
        shared = block.outputs(t, condition)
        assert all(torch.equal(a, b) for a, b in zip(shared, block.outputs(t, condition, share=False), strict=True))


# Scales per timestep


def test_scales_of_the_block_cover_every_input(adapter: Adapter, tmp_path: Path) -> None:
    """At every timestep nothing is clipped, for any class: what is rounded moves by half a step at most."""
    it = temporal(adapter)
    it.learn(tmp_path / "work", iterations=5)
    calibrate_block(it.block, it.layers, it.grid)
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in it.layers.values():
        [part] = layer.operators()
        assert part.inputs is not None and part.inputs.scale is not None and part.inputs.zero is not None
        assert part.inputs.scale.shape == (10,)
        part.inputs.register_forward_hook(
            lambda module, args, output: seen.append(
                ((output - args[0]).abs().amax(1), module.clock.pick(module.scale, args[0]).flatten())
            )
        )
    different = {name: layer.operators()[0].inputs.scale.unique().numel() for name, layer in it.layers.items()}
    assert min(different.values()) > 5  # timesteps do have scales of their own
    set_state(it.layers, rounding="off", activations=False)
    for layer in it.layers.values():  # inputs as they were while the ranges were measured, then rounded
        set_state(it.layers, rounding="hard", activations=False)
        layer.activations = True
        it.projections()
    assert seen
    assert all(bool((moved <= 0.5001 * scale + 1e-6).all()) for moved, scale in seen)


def test_a_grouped_convolution_is_measured_whole() -> None:
    """Its weight has the channels of one group only, its input those of all."""
    times = (1.0, 2.0)
    spec = LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", timesteps=times))
    depthwise = SimulatedLayer("depthwise", nn.Conv2d(8, 8, 3, groups=8), spec, Clock(times))
    x = torch.zeros(2, 8, 4, 4)
    x[0, 5], x[1, 5] = 100.0, 50.0
    extremes = Extremes({"depthwise": depthwise})
    extremes.start(torch.tensor(times))
    extremes.see("depthwise", x, torch.empty(0))
    extremes.set_scales(full_range)
    [part] = depthwise.operators()
    assert part.inputs.scale.tolist() == pytest.approx([100 / 127, 50 / 127])


def test_moving_ranges_are_averages_of_batches() -> None:
    values = torch.stack([-torch.arange(1.0, 41.0), torch.arange(1.0, 41.0)], dim=1)
    low, high = moving_range(values, seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(_seed(3)))
    expected = 0.0
    for number, part in enumerate(torch.split(order, 16)):
        largest = float(values[part, 1].max())
        expected = largest if number == 0 else 0.95 * expected + 0.05 * largest
    assert high == pytest.approx(expected)
    assert low == pytest.approx(-high)
    assert full_range(values) == (-40.0, 40.0)
    assert moving_range(values[:16], seed=9) == full_range(values[:16])  # one batch is no average


def _seed(seed: int) -> int:
    from compress.calibration.sampler import stream_seed

    return stream_seed(seed, "finite set", 0)


def test_scales_of_other_layers_follow_the_trajectory(tmp_path: Path) -> None:
    """What is measured per timestep lies within the range over all of them, and differs between them."""
    adapter = tiny_adapter(tmp_path / "model", "unet")
    trajectory = logged(adapter, tmp_path / "log")
    visited = visited_timesteps(trajectory)
    chosen = [a for a in assignments_of(adapter) if a.info.name in ("conv_in", "down_blocks.1.resnets.0.conv2")]
    timed = tfmq.prepare(Tfmq(finite_set="all"), chosen, Around(adapter, visited))
    from compress.quantize.clock import Clock

    model = adapter.load()
    layers = simulate(model, timed, Clock(visited))
    calibrate_layers(adapter, model, layers, trajectory, seed=0)
    shared = static_scales(adapter, adapter.load(), trajectory, chosen)
    for name, layer in layers.items():
        [part] = layer.operators()
        scale = part.inputs.scale.detach()
        assert scale.shape == (len(visited),)
        assert bool((scale <= shared[name].scale * 1.001).all())
        assert float(scale.max() / scale.min()) > 1.001
        assert bool(((part.inputs.zero >= 0) & (part.inputs.zero <= 255)).all())


# Formats


def test_the_paper_has_scales_per_timestep_in_the_block_alone(adapter: Adapter) -> None:
    found = tfmq.prepare(Tfmq(), assignments_of(adapter), Around(adapter))
    inside = Around(adapter).conditioning()
    for assignment in found:
        timesteps = assignment.spec.activations.timesteps
        assert timesteps == (TIMESTEPS if assignment.info.name in inside else ())
    assert len(inside) < len(found)


def test_finite_set_all(adapter: Adapter) -> None:
    found = tfmq.prepare(Tfmq(finite_set="all"), assignments_of(adapter), Around(adapter))
    assert all(a.spec.activations.timesteps == TIMESTEPS for a in found)


def test_compat_leaves_what_the_released_code_leaves(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "unet")
    found = {a.info.name: a for a in tfmq.prepare(Tfmq(mode="compat"), assignments_of(adapter), Around(adapter))}
    kept = {name for name, a in found.items() if a.spec is None}
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "down_blocks.0.downsamplers.0.conv"} <= kept
    assert {name for name in found if name.endswith("conv_shortcut")} <= kept
    assert not any(name.endswith(("time_emb_proj", "conv1", "conv2", "to_q")) for name in kept)
    floating = {name for name, a in found.items() if a.spec is not None and a.spec.activations is None}
    assert floating == {"time_embedding.linear_2", "down_blocks.0.resnets.0.conv1"}
    rest = [a for a in found.values() if a.spec is not None and a.spec.activations is not None]
    assert all(a.spec.activations.timesteps == TIMESTEPS for a in rest)
    one = tfmq.prepare(Tfmq(mode="compat", finite_set="time"), assignments_of(adapter), Around(adapter))
    assert {a.info.role for a in one if a.spec and a.spec.activations and a.spec.activations.timesteps} == {
        Role.TIME_EMBEDDING
    }


def test_dynamic_inputs_are_left_alone(adapter: Adapter) -> None:
    dynamic = assignments_of(adapter, activations=ActivationSettings(format="int8"))
    assert tfmq.prepare(Tfmq(finite_set="all"), dynamic, Around(adapter)) == dynamic


def test_cached_embeddings_are_not_quantized(adapter: Adapter) -> None:
    found = tfmq.prepare(Tfmq(embeddings="cached"), assignments_of(adapter), Around(adapter))
    kept = {a.info.name.rpartition(".")[2] for a in found if a.spec is None}
    assert kept == {"linear_1", "linear_2"}
    projections = {layer.name for layer in projection_layers(adapter, adapter.skeleton())}
    assert projections <= {a.info.name for a in found if a.spec is not None}


def test_models_and_formats_that_do_not_suit_are_refused() -> None:
    class Unknown:
        def conditioning(self) -> frozenset[str]:
            raise ModelError("which part depends on timestep and class alone is not known")

    layers = one_layer(INT4, ActivationSettings())
    with pytest.raises(RecipeError, match="`tfmq` does not suit this model: which part"):
        tfmq.prepare(Tfmq(), layers, Unknown())
    with pytest.raises(RecipeError, match="`tfmq` works on integer grids"):
        tfmq.prepare(Tfmq(), one_layer(WeightSettings(format="nf4"), ActivationSettings()), Unknown())


def test_the_defaults_are_the_papers() -> None:
    settings = Tfmq()
    weights = settings.rounding()
    assert (weights.iterations, weights.batch_size, weights.learning_rate, weights.norm) == (20_000, 32, 1e-3, 2.0)
    assert (weights.regularizer, weights.warmup, weights.beta_start, weights.beta_end) == (0.01, 0.2, 20, 2)
    assert (settings.mode, settings.per_timestep, settings.embeddings) == ("paper", "time", "live")
    assert Tfmq(mode="compat").per_timestep == "all"
    assert settings.temporal_rounding() == weights
    assert Tfmq(temporal_iterations=7).temporal_rounding().iterations == 7


# The method


def job_of(adapter: Adapter, settings: Tfmq, tmp_path: Path) -> QuantizeJob:
    """The stage's work before a method runs."""
    trajectory = logged(adapter, tmp_path / "log")
    job = job_for(adapter, trajectory, tmp_path / "work")
    around = Around(adapter, visited_timesteps(trajectory))
    assignments = [a for a in tfmq.prepare(settings, job.assignments, around) if a.spec is not None]
    scales = static_scales(adapter, adapter.load(), trajectory, assignments)
    return replace(job, assignments=tuple(assignments), static_scales=scales)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapter, Tfmq, Path]]:
    folder = tmp_path_factory.mktemp("tfmq")
    yield tiny_adapter(folder / "model", "dit"), Tfmq(finite_set="all", **FEW), folder


def test_projections_keep_their_integers_while_blocks_are_learned(runs) -> None:
    """And a second run gives the same bytes."""
    adapter, settings, folder = runs
    job = job_of(adapter, settings, folder)
    finished = {layer.name: layer for layer in tfmq.run(settings, job)}
    assert list(finished) == [a.info.name for a in job.assignments]
    with open_simulation(replace(job), settings.ranges) as simulation:
        block = TemporalBlock(adapter, simulation.model)
        grid = conditioning_grid(adapter, visited_timesteps(job.calibration.trajectory()))
        learn_temporal_block(
            block, simulation.layers, grid, settings.rounding(), seed=job.seed, work=folder / "block alone"
        )
        for name in block.layers:
            [part], [stored] = simulation.layers[name].operators(), finished[name].parts
            assert torch.equal(part.quantized().weight.codes, stored.weight.codes), name
    assert isinstance(job.calibration.progress, Notes)
    assert any("temporal information block, 44 pairs" in line for line in job.calibration.progress.lines)
    for layer in finished.values():
        assert all(part.inputs["input_scale"].shape == (4,) for part in layer.parts)


def test_full_precision_in_the_blocks_place_changes_little(runs, tmp_path: Path) -> None:
    """Specification, section 4f: the temporal features are not what is wrong with the quantized model."""
    adapter, settings, _ = runs
    job = job_of(adapter, settings, tmp_path)
    finished = {layer.name: layer for layer in tfmq.run(settings, job)}
    trajectory = job.calibration.trajectory()
    with open_simulation(job, settings.ranges) as simulation:
        layers, block = simulation.layers, TemporalBlock(adapter, simulation.model)
        for name, layer in layers.items():
            for part, stored in zip(layer.operators(), finished[name].parts, strict=True):
                part.finish_rounding(unpack_codes(stored.weight.codes, 4, part.rows.shape[1]).flatten(1))
                part.inputs.scale.data.copy_(stored.inputs["input_scale"])
                part.inputs.zero.copy_(stored.inputs["input_zero_point"])
        batch = next(trajectory.batches(32))
        denoise = denoise_with(adapter, simulation.model)
        with torch.no_grad():
            truth = denoise(batch.sample, batch.t, batch.condition)
            set_state(layers, rounding="hard", activations=True)
            quantized = denoise(batch.sample, batch.t, batch.condition)
            set_state([layers[name] for name in block.layers], rounding="off", activations=False)
            exact_time = denoise(batch.sample, batch.t, batch.condition)
        errors = [float((found - truth).square().mean()) for found in (quantized, exact_time)]
        assert 0.7 < errors[0] / errors[1] < 1.3


def test_block_reconstruction_disturbs_the_temporal_features_more(tmp_path: Path) -> None:
    """Specification, section 4f: no worse than reconstruction of blocks at W4, after as many iterations."""
    adapter = tiny_adapter(tmp_path / "model", "dit")
    trajectory = logged(adapter, tmp_path / "log", samples=4)
    grid = conditioning_grid(adapter, visited_timesteps(trajectory))
    truth = capture_projections(
        adapter, adapter.load(), grid, [layer.name for layer in projection_layers(adapter, adapter.skeleton())]
    )
    settings = RoundingSettings(iterations=30, batch_size=16, learning_rate=0.03)
    worst = []
    for apart in (True, False):
        job = job_for(adapter, trajectory, tmp_path / f"work{apart}", activations=ActivationSettings())
        with open_simulation(job, RangeSearch(kind="mse")) as simulation:
            layers, block = simulation.layers, TemporalBlock(adapter, simulation.model)
            if apart:
                learn_temporal_block(block, layers, grid, settings, seed=0, work=tmp_path / "temporal")
            else:
                learn_weights(simulation, settings)
            set_state(layers, rounding="hard", activations=False)
            worst.append(float(cosines(truth, capture_projections(adapter, simulation.model, grid, list(truth))).min()))
    assert worst[0] >= worst[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "dit"])
def test_the_bundled_models_keep_their_time(family: str, tmp_path: Path) -> None:
    """Trained weights: four bits learned without images disturb the temporal features far less than rounded ones."""
    adapter = open_adapter(resolve(f"zoo://digits-{family}"))
    it = temporal(adapter)
    set_state(it.layers, rounding="nearest")
    nearest = temporal_errors(it.truth, it.projections()).mean()
    it.learn(tmp_path / "four", iterations=200, learning_rate=0.01)
    calibrate_block(it.block, it.layers, it.grid)
    set_state(it.layers, rounding="hard", activations=True)
    found = it.projections()
    assert temporal_errors(it.truth, found).mean() < 0.5 * nearest
    assert torch.equal(nearest_timesteps(it.truth, found), torch.arange(10)[:, None].expand(10, 11))
    eight = temporal(adapter, "int8")
    eight.learn(tmp_path / "eight", iterations=50, learning_rate=0.01)
    calibrate_block(eight.block, eight.layers, eight.grid)
    set_state(eight.layers, rounding="hard", activations=True)
    assert float(cosines(eight.truth, eight.projections()).min()) >= 0.999
