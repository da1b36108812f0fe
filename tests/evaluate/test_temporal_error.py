"""The temporal error: values that can be worked out by hand, and a model that is known exactly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_dit_pipeline, tiny_model
from torch import Tensor

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.sampler import Sampler, denoise_with
from compress.engine.cache import Cache
from compress.engine.measure import KeyedSteps
from compress.errors import InputError, RecipeError, RunError
from compress.evaluate.temporal_error import nearest_timesteps, temporal_error, temporal_errors
from compress.models.layout import component_folder, scheduler_config
from compress.models.source import open_adapter, resolve
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan
from compress.stages.evaluate import temporal
from compress.stages.evaluate.base import EvaluationContext, Subject
from compress.stages.evaluate.settings import TemporalError


def circle(steps: int = 8, classes: int = 3, size: float = 1.0) -> Tensor:
    """Projections `[steps, classes, 2]`: timesteps at even angles, the same for each class but for its size."""
    angle = torch.arange(steps) * 2 * math.pi / steps
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    return points[:, None] * torch.arange(1, classes + 1)[:, None] * size


def test_equal_projections_have_no_error_and_stay_themselves() -> None:
    same = {"a": circle(), "b": circle(size=100.0)}
    main, exact, near = temporal_error(same, same, artefact="checkpoint")
    assert (main.name, main.value, main.n, main.labels, main.artefact) == ("temporal_error", 0.0, 24, {}, "checkpoint")
    assert (exact.value, exact.labels) == (1.0, {"of": "nearest_neighbour_identity", "within": "0"})
    assert (near.value, near.labels) == (1.0, {"of": "nearest_neighbour_identity", "within": "1"})


def test_the_error_is_relative_to_each_layers_energy() -> None:
    """10 % of a layer is an error of 0.01, whatever the layer's size; two layers average."""
    before = {"a": circle(), "b": circle(size=1000.0)}
    after = {"a": before["a"] * 1.1, "b": before["b"] * 1.2}
    errors = temporal_errors(before, after)
    assert errors.shape == (8, 3)
    assert float(errors.mean()) == pytest.approx((0.01 + 0.04) / 2, rel=1e-5)
    assert float(errors[0, 2] / errors[0, 0]) == pytest.approx(9.0)  # the third class has nine times the energy


def test_a_turn_by_one_step_is_seen_as_the_next_timestep() -> None:
    before = {"a": circle()}
    after = {"a": circle().roll(-1, dims=0)}
    assert torch.equal(nearest_timesteps(before, after), ((torch.arange(8) + 1) % 8)[:, None].expand(8, 3))
    _, exact, near = temporal_error(before, after, artefact="checkpoint")
    assert exact.value == 0.0
    assert near.value == pytest.approx(7 / 8)  # the last one became the first: seven steps away


def test_classes_are_compared_with_themselves() -> None:
    """One class is wrong at one timestep; the others do not hide it."""
    before, after = {"a": circle()}, {"a": circle()}
    after["a"][3, 1] = before["a"][6, 1]
    found = nearest_timesteps(before, after)
    assert found[3].tolist() == [3, 6, 3]
    assert temporal_error(before, after, artefact="checkpoint")[1].value == pytest.approx(23 / 24)


def test_a_layer_of_zeros_in_both_models_counts_for_nothing() -> None:
    """adaLN-zero starts that way."""
    zeros = torch.zeros(8, 3, 2)
    before, after = {"a": circle(), "zero": zeros}, {"a": circle() * 1.1, "zero": zeros}
    assert float(temporal_errors(before, after).mean()) == pytest.approx(0.01, rel=1e-5)
    with pytest.raises(InputError, match="zeros in full precision only"):
        temporal_errors(before, {"a": circle(), "zero": circle()})
    with pytest.raises(InputError, match="every projection"):
        temporal_errors({"zero": zeros}, {"zero": zeros})


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="not the same layers"):
        temporal_errors({"a": circle()}, {"b": circle()})
    with pytest.raises(InputError, match="one shape"):
        nearest_timesteps({"a": circle()}, {"a": circle(classes=2)})
    broken = circle()
    broken[1] = math.nan
    with pytest.raises(RunError, match="1 of 8 timesteps in `a` of the compressed"):
        temporal_errors({"a": circle()}, {"a": broken})


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    """A tiny DiT; as checkpoint the same one whose head scales its modulation by 1.1."""
    folder = tiny_dit_pipeline(tmp_path / "model")
    adapter = open_adapter(resolve(str(folder)))

    def scaled() -> torch.nn.Module:
        model = adapter.load()
        with torch.no_grad():
            model.proj_out_1.weight.mul_(1.1)
            model.proj_out_1.bias.mul_(1.1)
        return model

    def subject(artefact, key, load) -> Subject:
        part = component_folder(adapter.source)
        return Subject(artefact, key, lambda: denoise_with(adapter, load()), part, {"source": str(folder)}, load)

    cache = Cache(tmp_path / "cache")
    cache.prepare()
    onnx = Subject("onnx", "c", lambda: denoise_with(adapter, adapter.load()), component_folder(adapter.source), {})
    return EvaluationContext(
        adapter=adapter,
        subjects={
            "reference": subject("reference", "a", adapter.load),
            "checkpoint": subject("checkpoint", "b", scaled),
            "onnx": onnx,
        },
        sampler=Sampler(steps=4),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        judge=None,
        steps=KeyedSteps(cache),
        seed=0,
    )


def test_the_entry_measures_the_checkpoint_at_the_samplers_timesteps(context: EvaluationContext) -> None:
    found = temporal.run(TemporalError(), context)
    assert {metric.artefact for metric in found.metrics} == {"checkpoint"}
    main = found.metrics[0]
    assert main.value == pytest.approx(0.01 / 3, rel=1e-3)  # one of three layers: two blocks and the head
    assert main.n == 4 * 11
    (table,) = found.tables
    assert [float(str(row[0])) for row in table.rows] == sorted(
        (float(str(row[0])) for row in table.rows), reverse=True
    )
    assert len(table.rows) == 4
    assert found == temporal.run(TemporalError(classes=10), context)
    assert temporal.run(TemporalError(classes=2), context).metrics[0].n == 4 * 3


def test_a_recipe_for_a_pruned_model_is_refused(recipe_file) -> None:
    entry = {"kind": "temporal_error"}
    assert any(
        step == "evaluate: temporal_error" for step in make_plan(load_recipe(recipe_file(evaluate=[entry]))).steps
    )
    stages = [{"kind": "prune", "method": {"kind": "block_influence", "keep": 0.67, "samples": 16}}]
    with pytest.raises(RecipeError, match="pruned model has other layers"):
        make_plan(load_recipe(recipe_file(evaluate=[entry], stages=stages, gates=[])))


def test_a_family_that_does_not_know_its_conditioning_is_a_recipe_error(tmp_path: Path) -> None:
    model = tiny_model("UNet2DConditionModel")
    model.save_pretrained(tmp_path / "unet")
    adapter = open_adapter(resolve(str(tmp_path / "unet")))
    with pytest.raises(RecipeError, match="`temporal_error` does not suit this model"):
        temporal.conditioning_names(adapter)
