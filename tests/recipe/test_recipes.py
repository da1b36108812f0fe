"""Every recipe that ships can be planned, and says true things about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

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


def test_relative_models_start_at_the_recipe(tmp_path: Path, dit_folder: Path) -> None:
    (tmp_path / "models").symlink_to(dit_folder.parent)
    recipe = {"name": "x", "model": {"source": f"models/{dit_folder.name}"}, "stages": []}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert make_plan(load_recipe(tmp_path / "recipe.yaml")).original.family == "dit"
