from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibration_fakes import CLASSES, FakeAdapter, TextFakeAdapter
from pydantic import TypeAdapter

from compress.calibration.conditions import (
    ClassConditions,
    ConditionSettings,
    DatasetConditions,
    NoConditions,
    PromptConditions,
    read_texts,
    resolve_conditions,
)
from compress.errors import InputError, RecipeError

ROOT = Path(__file__).parents[2]


def test_settings_are_told_apart_by_kind() -> None:
    parse = TypeAdapter(ConditionSettings).validate_python
    assert parse({"kind": "classes"}) == ClassConditions()
    assert parse({"kind": "classes", "labels": [3, 1]}) == ClassConditions(labels=(3, 1))
    assert parse({"kind": "none"}) == NoConditions()
    assert parse({"kind": "prompts", "path": "p.txt"}) == PromptConditions(path="p.txt")
    assert parse({"kind": "dataset", "id": "a/b", "split": "test"}) == DatasetConditions(id="a/b", split="test")
    with pytest.raises(ValueError, match="one of them"):
        parse({"kind": "classes", "labels": [1], "path": "x.yaml"})


def test_classes_take_turns() -> None:
    conditions = resolve_conditions(ClassConditions(), FakeAdapter())
    pair = conditions([0, 3, 4, 401])
    assert pair.condition["class_labels"].tolist() == [0, 3, 0, 1]
    assert pair.null is not None
    assert pair.null["class_labels"].tolist() == [CLASSES] * 4
    assert conditions.facts == {"kind": "classes", "labels": [0, 1, 2, 3]}
    labels = conditions.labels_of([5, 6])
    assert labels is not None
    assert labels.tolist() == [1, 2]
    listed = resolve_conditions(ClassConditions(labels=(3, 1, 1)), FakeAdapter())
    assert listed(range(4)).condition["class_labels"].tolist() == [3, 1, 1, 3]


def test_a_class_list_file_is_looked_up_in_the_recipe_folder_first(tmp_path: Path) -> None:
    recipes, here = tmp_path / "recipes", tmp_path / "here"
    for folder, labels in ((recipes, "[2]"), (here, "[3]")):
        folder.mkdir()
        (folder / "list.yaml").write_text(f"labels: {labels}\n", encoding="utf8")
    settings = ClassConditions(path="list.yaml")
    assert resolve_conditions(settings, FakeAdapter(), folders=[recipes, here]).labels == (2,)
    (recipes / "list.yaml").unlink()
    assert resolve_conditions(settings, FakeAdapter(), folders=[recipes, here]).labels == (3,)
    (here / "list.yaml").unlink()
    with pytest.raises(InputError, match=r"no such file: list\.yaml"):
        resolve_conditions(settings, FakeAdapter(), folders=[recipes, here])


@pytest.mark.parametrize("text", ["labels: []", "classes: [1]", "labels: [a]", "[1, 2]", "labels: [1"])
def test_a_broken_class_list_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.yaml").write_text(text, encoding="utf8")
    with pytest.raises(InputError, match=r"list\.yaml: not a class list"):
        resolve_conditions(ClassConditions(path="list.yaml"), FakeAdapter(), folders=[tmp_path])


@pytest.mark.parametrize("path", sorted((ROOT / "calibration").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_class_lists_load(path: Path) -> None:
    conditions = resolve_conditions(ClassConditions(path=str(path)), FakeAdapter(classes=1000))
    assert conditions.labels
    assert len(set(conditions.labels)) == len(conditions.labels)


def test_only_specifications_are_shipped() -> None:
    allowed = {".md", ".yaml", ".txt"}
    assert {path.suffix for path in (ROOT / "calibration").rglob("*") if path.is_file()} <= allowed


def test_labels_must_suit_the_model() -> None:
    with pytest.raises(RecipeError, match=r"4 is out of range .*0 to 3"):
        resolve_conditions(ClassConditions(labels=(0, 4)), FakeAdapter())
    with pytest.raises(RecipeError, match="takes no class labels"):
        resolve_conditions(ClassConditions(), FakeAdapter(classes=None))


def test_no_conditions() -> None:
    nothing = resolve_conditions(NoConditions(), FakeAdapter(classes=None))
    assert nothing(range(3)) == ({}, None)
    assert nothing.labels_of([0]) is None
    null_class = resolve_conditions(NoConditions(), FakeAdapter())
    assert null_class(range(3)).condition["class_labels"].tolist() == [CLASSES] * 3
    assert null_class(range(3)).null is None
    with pytest.raises(RecipeError, match="cannot do without a class label"):
        resolve_conditions(NoConditions(), FakeAdapter(null=False))
    with pytest.raises(RecipeError, match="needs a condition: text"):
        resolve_conditions(NoConditions(), TextFakeAdapter())


def test_prompts_reach_models_that_encode_text(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# written for this test\n\na red cube\n  ein Würfel \n", encoding="utf8")
    settings = PromptConditions(path="prompts.txt")
    assert read_texts(settings, [tmp_path]) == ["a red cube", "ein Würfel"]
    conditions = resolve_conditions(settings, TextFakeAdapter(), folders=[tmp_path])
    pair = conditions(range(3))
    assert pair.condition["text"][:, 0].tolist() == [10, 10, 10]
    assert pair.null is not None
    assert torch.equal(pair.null["text"], torch.zeros(3, 2))
    assert conditions.facts["texts"] == ["a red cube", "ein Würfel"]


def test_prompts_are_refused_where_nothing_encodes_them(tmp_path: Path) -> None:
    settings = PromptConditions(path="prompts.txt")
    with pytest.raises(RecipeError, match="fake takes class labels, not prompts"):
        resolve_conditions(settings, FakeAdapter())
    with pytest.raises(RecipeError, match="text encoder, which adapter fake does not offer"):
        resolve_conditions(settings, FakeAdapter(classes=None))
    with pytest.raises(InputError, match="no such file"):
        resolve_conditions(settings, TextFakeAdapter(), folders=[tmp_path])
    (tmp_path / "prompts.txt").write_text("# nothing\n", encoding="utf8")
    with pytest.raises(InputError, match="holds no text"):
        resolve_conditions(settings, TextFakeAdapter(), folders=[tmp_path])


def test_a_dataset_column_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"caption": "a dog"}\n{"caption": "two cats"}\n', encoding="utf8")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    settings = DatasetConditions(id=str(folder), split="train", column="caption")
    assert read_texts(settings, []) == ["a dog", "two cats"]
    with pytest.raises(InputError, match=r"no column `text` \(columns: caption\)"):
        read_texts(settings.model_copy(update={"column": "text"}), [])
    with pytest.raises(InputError, match="cannot read split `test`"):
        read_texts(settings.model_copy(update={"split": "test"}), [])
    with pytest.raises(InputError, match="cannot read split"):
        read_texts(settings.model_copy(update={"id": str(tmp_path / "missing")}), [])
