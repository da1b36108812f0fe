"""`--set` on the command line: what it addresses, what it makes, and what it says when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_standins import TEXT, Standin, Tinyfusion, changed

from compress.errors import RecipeError
from compress.recipe.overrides import Override, apply_overrides, parse_override
from compress.recipe.source import parse
from compress.recipe.validate import validate


def overridden(*texts: str, recipe: str = TEXT) -> dict[str, Any]:
    return apply_overrides(parse(recipe), texts).data


def complaint(*texts: str, recipe: str = TEXT) -> str:
    with pytest.raises(RecipeError) as caught:
        validate(Standin, apply_overrides(parse(recipe), texts))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1e-4", 1e-4),
        ("a= text with blanks ", "text with blanks"),
        ("a=x=y", "x=y"),
        ("a=", None),
        ("a=''", ""),
        ("a=true", True),
        ("a=zoo://digits-dit", "zoo://digits-dit"),
        ("a=[1, {b: 2}]", [1, {"b": 2}]),
        ("a={kind: magnitude, keep: 0.5}", {"kind": "magnitude", "keep": 0.5}),
    ],
)
def test_the_value_is_yaml(text: str, value: object) -> None:
    assert parse_override(text) == Override(("a",), value, f"--set {' '.join(text.split())}")


def test_the_path_is_split_at_dots() -> None:
    assert parse_override(" stages.0 . keep =1").keys == ("stages", "0", "keep")


def test_setting_replaces_makes_and_appends() -> None:
    data = overridden(
        "seed=5",
        "stages.0.method.keep=0.75",
        "stages.1.rules.2={role: conv}",
        "notes.deep=3",
        "gates.1.metric=ssim",
        "stages.0.method.kind=magnitude",
    )
    assert data["seed"] == 5
    assert data["stages"][0]["method"] == {"kind": "magnitude", "keep": 0.75}
    assert data["stages"][1]["rules"][2] == {"role": "conv"}
    assert data["notes"] == {"deep": 3}
    assert data["gates"][1] == {"metric": "ssim", "min": 30}
    assert len(data["gates"]) == 2


def test_a_list_that_is_not_there_is_begun_with_index_0() -> None:
    data = overridden("gates.0.metric=psnr", "gates.0.min=3", "gates.1={metric: x, max: 1}", recipe="name: x")
    assert data["gates"] == [{"metric": "psnr", "min": 3}, {"metric": "x", "max": 1}]


def test_a_key_without_a_value_can_be_filled() -> None:
    assert overridden("notes.a=1", recipe="notes:\n")["notes"] == {"a": 1}


def test_the_later_one_wins() -> None:
    assert overridden("seed=1", "seed=2")["seed"] == 2
    assert overridden("model.dtype=x", "model={source: y}")["model"] == {"source": "y"}
    assert overridden("model={source: y}", "model.dtype=x")["model"] == {"source": "y", "dtype": "x"}


def test_the_source_itself_stays_as_it_was() -> None:
    source = parse(TEXT)
    apply_overrides(source, ["seed=9", "stages.0.method.keep=1", "gates=[]"])
    assert source == parse(TEXT)


def test_without_overrides_nothing_changes() -> None:
    assert apply_overrides(parse(TEXT), []) == parse(TEXT)


def test_the_result_is_validated_like_a_file() -> None:
    source = apply_overrides(parse(TEXT), ["stages.0.method.learning_rate=1e-5", "stages.0.method.iterations=7"])
    recipe = validate(Standin, source)
    assert recipe.stages[0].method == Tinyfusion(keep=0.5, iterations=7, learning_rate=1e-5)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("seed",), "--set seed=5"),
        (("stages", 0, "method"), "--set stages.0.method={kind: magnitude}"),
        (("stages", 0, "method", "keep"), "--set stages.0.method={kind: magnitude}"),
        (("stages", 0, "kind"), "recipe.yaml:12"),
        (("notes",), "--set notes.a.b=1"),
        (("notes", "a"), "--set notes.a.b=1"),
        (("stages", 1, "rules", 2), "--set stages.1.rules.2.keep=true"),
        (("stages", 1, "rules", 1), "recipe.yaml:20"),
    ],
)
def test_places(path: tuple[str | int, ...], place: str) -> None:
    texts = ["seed=5", "stages.0.method={kind: magnitude}", "notes.a.b=1", "stages.1.rules.2.keep=true"]
    assert apply_overrides(parse(TEXT), texts).where(path) == place


def test_setting_a_whole_mapping_forgets_overrides_inside_it() -> None:
    source = apply_overrides(parse(TEXT), ["model.dtype=x", "model={source: y}"])
    assert source.where(("model", "dtype")) == "--set model={source: y}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed", "--set seed: there is no `=` (write --set key.key=value)"),
        ("=5", "--set =5: a key is empty (write --set key.key=value)"),
        ("a..b=5", "--set a..b=5: a key is empty (write --set key.key=value)"),
        (".a=5", "--set .a=5: a key is empty (write --set key.key=value)"),
        ("seed=[1", "--set seed=[1: not valid YAML: the `[` opened here is never closed (add `]`)"),
        (
            "name=*.x",
            "--set name=*.x: not valid YAML: `*` begins an alias (put quotes around text that begins with `*`)",
        ),
        ("seed=abc", "--set seed=abc: seed: expected integer, found 'abc' (text)"),
        ("seed=", "--set seed=: seed: expected integer, found nothing"),
        ("sede=1", "--set sede=1: unknown key `sede`; did you mean `seed`?"),
        ("modle.dtype=float16", "--set modle.dtype=float16: unknown key `modle`; did you mean `model`?"),
        (
            "stages.0.method.iteratons=5",
            "--set stages.0.method.iteratons=5: stages.0.method: unknown key `iteratons`; did you mean `iterations`?",
        ),
        (
            "stages.0.method.kind=tinyfusio",
            "--set stages.0.method.kind=tinyfusio: stages.0.method: unknown kind `tinyfusio`; "
            "did you mean `tinyfusion`? (known: magnitude, tinyfusion)",
        ),
        (
            "stages.0.method=magnitude",
            "--set stages.0.method=magnitude: stages.0.method: expected mapping, found 'magnitude' (text); "
            "write `{kind: magnitude}`",
        ),
        (
            "stages.2={kind: quantize}",
            "--set stages.2={kind: quantize}: stages.2: missing key `weights`",
        ),
        (
            "stages.prune.keep=1",
            "--set stages.prune.keep=1: `stages` is a list, `prune` is not an index "
            "(write an index: stages.0 is the first, stages.2 appends)",
        ),
        (
            "stages.-1.kind=x",
            "--set stages.-1.kind=x: `stages` is a list, `-1` is not an index "
            "(write an index: stages.0 is the first, stages.2 appends)",
        ),
        ("stages.3={}", "--set stages.3={}: `stages` has 2 items, 3 is past the end (stages.2 appends)"),
        ("seed.x=1", "--set seed.x=1: `seed` is 0 (integer) and has no keys"),
        (
            "model.source.x.y=1",
            "--set model.source.x.y=1: `model.source` is 'zoo://digits-dit' (text) and has no keys",
        ),
        (f"name=[{'x' * 100}]", f"--set name=[{'x' * 73}…: name: expected text, found a list"),
    ],
)
def test_one_wrong_override_gives_exactly_this_sentence(text: str, sentence: str) -> None:
    assert complaint(text) == sentence


def test_an_index_into_an_empty_list() -> None:
    assert complaint("gates.x=1", recipe="gates: []") == (
        "--set gates.x=1: `gates` is a list, `x` is not an index (write an index: gates.0 appends)"
    )


def test_mistakes_of_the_file_come_before_those_of_the_command_line() -> None:
    text = changed(l24="  - {metric: 1, min: 30}")
    assert complaint("seed=x", "name=5", recipe=text).splitlines() == [
        "recipe.yaml:24: gates.1.metric: expected text, found 1 (integer); put it in quotes",
        "--set seed=x: seed: expected integer, found 'x' (text)",
        "--set name=5: name: expected text, found 5 (integer); put it in quotes",
    ]
