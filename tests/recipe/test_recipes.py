"""Every recipe that ships can be planned, and says true things about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from compress.engine.run import RunOptions, begin
from compress.errors import InputError, ModelError, RecipeError
from compress.recipe.dump import dump
from compress.recipe.model import Recipe, load_recipe
from compress.recipe.plan import make_plan
from compress.recipe.source import parse
from compress.recipe.validate import validate

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_planned(path: Path) -> None:
    plan = make_plan(load_recipe(path))
    assert plan.recipe.name == path.stem
    assert plan.layers
    gates = {gate.metric: gate for gate in plan.recipe.gates}
    assert gates["size_ratio"].max is not None
    assert plan.size_ratio <= gates["size_ratio"].max
    assert plan.memory_bytes > plan.predicted_bytes
    assert plan.seconds > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_lock_file_reloads_equal(path: Path) -> None:
    recipe = load_recipe(path).recipe
    text = dump(recipe)
    assert validate(Recipe, parse(text)) == recipe
    assert yaml.safe_load(text)["seed"] == 0


def test_prompts_without_a_text_encoder_can_be_planned_and_not_run(tmp_path: Path) -> None:
    data = yaml.safe_load((RECIPES[0].parent / "sd-1.4-w8a8.yaml").read_text())
    data["model"]["source"] = str(RECIPES[0].parent / "configs" / "sd-1.4")
    (tmp_path / "prompts.txt").write_text("a red bicycle\n")
    data["calibration"]["conditions"]["path"] = "prompts.txt"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    plan = make_plan(load_recipe(path))
    assert plan.original.parameters == 859_520_964
    assert "no text encoder here: the recipe can be planned, but not run" in plan.notes
    with pytest.raises(ModelError, match="safetensors"):
        begin(load_recipe(path), RunOptions(tmp_path / "out"))
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(InputError, match="no such file"):
        make_plan(load_recipe(path))


def test_prompts_for_a_model_with_classes_are_refused(tmp_path: Path, dit_folder: Path) -> None:
    (tmp_path / "prompts.txt").write_text("seven\n")
    conditions = {"kind": "prompts", "path": "prompts.txt"}
    recipe = {
        "name": "x",
        "model": {"source": str(dit_folder)},
        "calibration": {"conditions": conditions},
        "stages": [],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match="takes class labels, not prompts"):
        make_plan(load_recipe(tmp_path / "recipe.yaml"))


def test_relative_models_start_at_the_recipe(tmp_path: Path, dit_folder: Path) -> None:
    (tmp_path / "models").symlink_to(dit_folder.parent)
    recipe = {"name": "x", "model": {"source": f"models/{dit_folder.name}"}, "stages": []}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert make_plan(load_recipe(tmp_path / "recipe.yaml")).original.family == "dit"
