"""The engine on a toy denoiser: units, both phases, what they keep and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learned import Notes
from reconstruct_toys import (
    ROWS,
    SPEC,
    TIMESTEPS,
    Toy,
    all_codes,
    all_steps,
    parts_of,
    reconstruction,
    toy_record,
)
from tiny import tiny_dit_pipeline, tiny_model, tiny_unet2d_pipeline

from compress.calibration import Record
from compress.errors import RunError
from compress.formats import WeightSpec
from compress.models.source import open_adapter, resolve
from compress.quantize.reconstruct import Reconstruction, RoundingSettings, StepSettings, UnitReport, find_units
from compress.quantize.simulate import set_state
from compress.quantize.spec import ActivationSpec, LayerSpec

ROUNDING = RoundingSettings(iterations=250, batch_size=16, learning_rate=5e-2, regularizer=0.02)
SHORT = RoundingSettings(iterations=15, batch_size=16, learning_rate=5e-2)
STEPS = StepSettings(iterations=30, batch_size=16, learning_rate=2e-3)


def learn_all(engine: Reconstruction, settings: RoundingSettings = SHORT) -> list[UnitReport]:
    return [engine.learn_rounding(unit, settings) for unit in engine.units]


def output(engine: Reconstruction) -> torch.Tensor:
    record = toy_record()
    with torch.no_grad():
        return engine.model(record.sample, record.t)


def test_units_come_in_the_order_of_computation(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    found = [(unit.name, unit.layers) for unit in engine.units]
    blocks = ("block.conv", "block.shortcut")
    assert found == [("stem", ("stem",)), ("time", ("time",)), ("block", blocks), ("head", ("head",))]


@pytest.mark.parametrize("write", [tiny_dit_pipeline, tiny_unet2d_pipeline])
def test_units_of_real_models(write, tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(write(tmp_path))))
    model, inputs = adapter.load(), adapter.example_inputs(2)
    t = inputs.timestep.float()
    record = Record(inputs.sample, t, t, inputs.condition, torch.zeros(2).long(), torch.arange(2))
    names = [layer.name for layer in adapter.layers(model)]
    units = find_units(adapter, model, names, record)
    assert sorted(name for unit in units for name in unit.layers) == sorted(names)
    blocks = [name for name, _ in adapter.blocks(model)]
    assert [unit.name for unit in units if unit.name in blocks] == blocks
    assert all(unit.layers == (unit.name,) for unit in units if unit.name not in blocks)
    order = [unit.name for unit in units]
    if write is tiny_dit_pipeline:
        assert order[0] == "pos_embed.proj" and order[-2:] == ["proj_out_1", "proj_out_2"]
        assert "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1" in units[1].layers
    else:
        assert order[:3] == ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
        assert order[-1] == "conv_out"
    some = find_units(adapter, model, [name for name in names if name.startswith(blocks[1])], record)
    assert [unit.name for unit in some] == [blocks[1]]


def test_levels_of_a_text_unet_divide_into_their_blocks(tmp_path: Path) -> None:
    """Q-Diffusion's units for Stable Diffusion: residual and transformer blocks, single layers around them."""
    tiny_model("UNet2DConditionModel").save_pretrained(tmp_path / "unet")
    adapter = open_adapter(resolve(str(tmp_path / "unet")))
    model, inputs = adapter.load(), adapter.example_inputs(2)
    t = inputs.timestep.float()
    record = Record(inputs.sample, t, t, inputs.condition, torch.zeros(2).long(), torch.arange(2))
    names = [layer.name for layer in adapter.layers(model)]
    units = find_units(adapter, model, names, record)
    assert sorted(name for unit in units for name in unit.layers) == sorted(names)
    found = {unit.name: unit.layers for unit in units}
    transformer = "down_blocks.0.attentions.0"
    assert {name.rpartition(".")[2] for name in found[f"{transformer}.transformer_blocks.0"]} == {
        *("to_q", "to_k", "to_v", "0", "proj", "2")
    }
    assert found["up_blocks.1.resnets.0"][0] == "up_blocks.1.resnets.0.conv1"
    single = (f"{transformer}.proj_in", f"{transformer}.proj_out", "down_blocks.0.downsamplers.0.conv")
    assert all(found[name] == (name,) for name in single)
    assert list(found).index(single[0]) < list(found).index(f"{transformer}.transformer_blocks.0")
    assert not {name for name, _ in adapter.blocks(model)} & set(found)


def test_learned_rounding_beats_nearest_in_every_unit(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path, mode="paper")
    reports = learn_all(engine, ROUNDING)
    assert [report.name for report in reports] == [unit.name for unit in engine.units]
    for report in reports:
        assert report.phase == "rounding"
        assert report.last_loss <= report.nearest_loss == report.first_loss
    block = reports[2]
    assert block.kept
    assert block.last_loss < block.nearest_loss * 0.8
    assert block.settled >= 0.99
    assert abs(block.last_loss - block.soft_loss) < block.last_loss / 20
    notes = engine.calibration.progress
    assert isinstance(notes, Notes)
    assert notes.lines[2] == f"block  loss {block.nearest_loss:.2e} -> {block.last_loss:.2e}"


def test_the_reported_loss_is_that_of_the_rounded_unit(tmp_path: Path) -> None:
    """Inputs from the rounded layers before it, target in full precision, weights as they are packed."""
    engine = reconstruction(tmp_path)
    report = learn_all(engine)[-1]
    seen: list[torch.Tensor] = []
    handle = engine.model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    record = toy_record()
    with torch.no_grad():
        set_state(engine.layers, rounding="hard", activations=False)
        output(engine)
        handle.remove()
        set_state(engine.layers, rounding="off")
        target = output(engine)
        engine.layers["head"].rounding = "hard"
        loss = (engine.layers["head"](seen[0]) - target).square().sum(1).mean()
    assert len(record.t) == ROWS
    assert report.last_loss == pytest.approx(float(loss), rel=1e-4)


def test_compat_leaves_the_skip_half_free(tmp_path: Path) -> None:
    settled = {}
    for mode in ("paper", "compat"):
        engine = reconstruction(tmp_path / mode, mode=mode)
        settled[mode] = engine.learn_rounding(engine.units[2], ROUNDING).settled
    assert settled["paper"] >= 0.99
    skip = 36 / (36 + 36 + 6 * 54)  # its share of the block's weights
    assert 1 - skip < settled["compat"] < 1 - skip / 4


@pytest.mark.parametrize("keep_better", [True, False])
def test_learning_that_loses_is_not_kept(keep_better: bool, tmp_path: Path) -> None:
    """A rate so large that V is thrown about: nearest stays, unless the settings say otherwise."""
    wild = RoundingSettings(iterations=3, batch_size=4, learning_rate=50.0, keep_better=keep_better)
    engine, untouched = reconstruction(tmp_path), all_codes(reconstruction(tmp_path / "other"))
    report = engine.learn_rounding(engine.units[2], wild)
    same = all(torch.equal(a, b) for a, b in zip(all_codes(engine), untouched, strict=True))
    assert report.kept is not keep_better
    assert same is keep_better
    if keep_better:
        assert report.last_loss == report.nearest_loss
        assert engine.calibration.progress.lines[-1].endswith("(rounding to nearest kept)")
    else:
        assert report.last_loss > report.nearest_loss


def test_only_the_unit_changes_and_offsets_are_let_go(tmp_path: Path) -> None:
    engine, untouched = reconstruction(tmp_path), all_codes(reconstruction(tmp_path / "other"))
    engine.learn_rounding(engine.units[2], SHORT)
    changed = [not torch.equal(a, b) for a, b in zip(all_codes(engine), untouched, strict=True)]
    names = [layer.name for layer in engine.layers.values() for _ in layer.operators()]
    assert {name for name, different in zip(names, changed, strict=True) if different} <= set(engine.units[2].layers)
    assert any(changed)
    assert all(part.offset is None for part in parts_of(engine.layers))
    assert all(not parameter.requires_grad for parameter in engine.layers["block.conv"].layer.parameters())


def test_frozen_layers_keep_their_codes(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    part = engine.layers["block.conv"].operators()[0]
    part.finish_rounding((part.codes() // 2 * 2).clone())
    decided = part.codes().clone()
    engine.learn_rounding(engine.units[2], SHORT, frozen=frozenset({"block.conv"}))
    assert torch.equal(part.codes(), decided)
    only = frozenset({"stem"})
    report = engine.learn_rounding(engine.units[0], SHORT, frozen=only)
    assert report.seconds == 0 and report.settled == 1  # nothing left to learn


def test_quantizers_off_is_the_original_network(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    learn_all(engine)
    for unit in engine.units:
        engine.learn_steps(unit, STEPS, asymmetric=True)
    set_state(engine.layers, rounding="off", activations=False)
    record = toy_record()
    with torch.no_grad():
        expected = Toy().eval()(record.sample, record.t)
    assert torch.equal(output(engine), expected)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_steps_improve_and_zero_points_stay(asymmetric: bool, tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    learn_all(engine)
    before, codes = all_steps(engine), all_codes(engine)
    reports = [engine.learn_steps(unit, STEPS, asymmetric=asymmetric) for unit in engine.units]
    assert all(report.last_loss <= report.nearest_loss for report in reports)
    assert sum(report.last_loss for report in reports) < sum(report.nearest_loss for report in reports)
    after = all_steps(engine)
    assert all(bool((scale > 0).all()) for scale in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(part.inputs.zero, torch.tensor([120.0])) for part in parts_of(engine.layers))
    assert all(torch.equal(a, b) for a, b in zip(codes, all_codes(engine), strict=True))


def test_steps_that_lose_are_not_kept(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    before = all_steps(engine)
    report = engine.learn_steps(engine.units[2], StepSettings(iterations=2, learning_rate=100.0), asymmetric=False)
    assert not report.kept and report.last_loss == report.nearest_loss
    assert all(torch.equal(a, b) for a, b in zip(before, all_steps(engine), strict=True))


def test_scales_of_other_timesteps_are_left_alone(tmp_path: Path) -> None:
    """The clock follows the rows of each mini-batch, so an uncalibrated timestep has no gradient."""
    times = (*TIMESTEPS, 5000.0)
    static = ActivationSpec("int8", "static", symmetric=False, timesteps=times)
    engine = reconstruction(tmp_path, spec=replace(SPEC, activations=static))
    assert engine.clock is not None
    engine.clock.timesteps = times
    engine.learn_steps(engine.units[2], STEPS, asymmetric=False)
    (scale,) = [part.inputs.scale.detach() for part in engine.layers["block.conv"].operators()]
    assert bool((scale[:3] != 0.05).all())
    assert scale[3] == torch.tensor(0.05)
    assert len(set(scale[:3].tolist())) == 3


@pytest.mark.parametrize("activations", [None, ActivationSpec("int8", "dynamic")])
def test_inputs_without_static_scales_have_nothing_to_learn(activations, tmp_path: Path) -> None:
    engine = reconstruction(tmp_path, spec=LayerSpec(WeightSpec("int4"), activations))
    report = engine.learn_steps(engine.units[2], STEPS, asymmetric=False)
    assert report == UnitReport("block", "steps", 0.0, 0.0, 0.0, 1.0, True, 0.0)


def test_disk_and_memory_learn_the_same(tmp_path: Path) -> None:
    in_memory, on_disk = reconstruction(tmp_path / "a"), reconstruction(tmp_path / "b", memory_budget=40)
    assert on_disk.place.memory_cap == 10 < in_memory.place.memory_cap
    for engine in (in_memory, on_disk):
        learn_all(engine)
    assert all(torch.equal(a, b) for a, b in zip(all_codes(in_memory), all_codes(on_disk), strict=True))
    assert list((tmp_path / "b" / "rows").iterdir()) == []


def test_fewer_rows_can_be_asked_for(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path, rows=20)
    assert len(engine.rows) == 20
    assert engine.learn_rounding(engine.units[0], SHORT).last_loss > 0


def test_values_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    engine = reconstruction(tmp_path)
    engine.layers["stem"].layer.bias.data.fill_(torch.inf)
    with pytest.raises(RunError, match="stem: this unit's outputs are not finite"):
        engine.learn_rounding(engine.units[0], SHORT)
    assert list(tmp_path.glob("*.safetensors")) == []
