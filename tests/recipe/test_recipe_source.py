"""YAML as data with lines; one sentence for everything that can be wrong with a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from recipe_standins import TEXT

from compress.errors import RecipeError
from compress.recipe.source import Position, load, parse, parse_value


def complaint(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix("recipe.yaml:")


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ((), (1, 1)),
        (("version",), (1, 1)),
        (("name",), (2, 1)),
        (("model", "dtype"), (6, 3)),
        (("calibration", "sampler"), (8, 3)),
        (("calibration", "sampler", "steps"), (8, 25)),
        (("stages",), (11, 1)),
        (("stages", 0), (12, 5)),
        (("stages", 0, "kind"), (12, 5)),
        (("stages", 0, "method", "keep"), (13, 32)),
        (("stages", 1, "rules", 1), (20, 9)),
        (("stages", 1, "rules", 1, "keep"), (21, 9)),
        (("gates", 1, "min"), (24, 20)),
    ],
)
def test_every_path_has_the_position_of_its_key(path: tuple[str | int, ...], position: tuple[int, int]) -> None:
    assert parse(TEXT).lines[path] == Position(*position)


def test_every_value_has_a_position() -> None:
    source = parse(TEXT)

    def paths(value: Any, path: tuple[str | int, ...]) -> set[tuple[str | int, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {path}.union(*(paths(below, (*path, key)) for key, below in items))

    assert paths(source.data, ()) == set(source.lines)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("seed",), "recipe.yaml:3"),
        (("model", "missing"), "recipe.yaml:4"),
        (("stages", 0, "method", "missing", 7, "deeper"), "recipe.yaml:13"),
        (("missing",), "recipe.yaml:1"),
    ],
)
def test_what_is_not_written_has_the_place_of_what_holds_it(path: tuple[str | int, ...], place: str) -> None:
    assert parse(TEXT).where(path) == place


def test_places_name_the_file_as_given() -> None:
    assert parse(TEXT, "recipes/a.yaml").where(("seed",)) == "recipes/a.yaml:3"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("10_000", 10000),
        ("0x1F", 31),
        ("0o17", 15),
        ("0", 0),
        ("010", "010"),
        ("1__0", "1__0"),
        ("1.5", 1.5),
        ("1.", 1.0),
        ("-.5e3", -500.0),
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        ("1_0.5", 10.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("", None),
        ("''", ""),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1.2.3", "1.2.3"),
        ("zoo://digits-dit", "zoo://digits-dit"),
        ("=", "="),
        ("<<", "<<"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("'*.proj'", "*.proj"),
        ("{1: a, true: b, null: c}", {"1": "a", "true": "b", "null": "c"}),
    ],
)
def test_scalars(text: str, value: object) -> None:
    parsed, _ = parse_value(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number_is_read_so_that_validation_can_refuse_it() -> None:
    parsed, _ = parse_value(".nan", "x")
    assert math.isnan(parsed)


def test_anchors_aliases_and_merged_mappings() -> None:
    source = parse(
        "a: &a {x: 1, y: 2}\nb: *a\nc:\n  y: 3\n  <<: *a\nd:\n  <<: [{z: 5}, *a, {x: 9}]\ne: [&one 1, *one]\n"
    )
    assert source.data == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"y": 3, "x": 1},
        "d": {"z": 5, "x": 1, "y": 2},
        "e": [1, 1],
    }
    assert source.lines["b",] == (2, 1)
    assert source.lines["b", "x"] == (1, 8)
    assert source.lines["c", "y"] == (4, 3)
    assert source.lines["c", "x"] == (1, 8)


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: 2\r\n")
    source = load(path)
    assert source.data == {"a": 1, "b": {"c": 2}}
    assert source.where(("b", "c")) == f"{path}:3"
    assert source.path == path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "3: key `a` is written twice, first on line 1 (remove one of them)"),
        ("a: {b: 1,\n b: 2}", "2: key `b` is written twice, first on line 1 (remove one of them)"),
        ("s:\n- a: 1\n- a: 2\n  b: 3\n  a: 4", "5: key `a` is written twice, first on line 3 (remove one of them)"),
        ("1: a\n'1': b", "2: key `1` is written twice, first on line 1 (remove one of them)"),
        ("a:\n\tb: 1", "2: a tab indents this line (YAML indents with spaces)"),
        ("a:\n  b: x\n  \tc: y", "3: a tab indents this line (YAML indents with spaces)"),
        ("\ta: 1", "1: a tab indents this line (YAML indents with spaces)"),
        ("", " the recipe is empty (`compress schema` lists the keys)"),
        ("# only a comment\n", " the recipe is empty (`compress schema` lists the keys)"),
        ("---\n", " the recipe is empty (`compress schema` lists the keys)"),
        ("- a\n- b", " the recipe is a list, not a mapping (write `key: value` lines)"),
        ("just text", " the recipe is a single value, not a mapping (write `key: value` lines)"),
        (
            "a: 1\n---\nb: 2",
            "2: not valid YAML: a second document begins here (a recipe is one document: remove the `---`)",
        ),
        (
            "m:\n - match: *.proj",
            "2: not valid YAML: `*` begins an alias (put quotes around text that begins with `*`)",
        ),
        ("m: *proj", "1: not valid YAML: this alias names no anchor (put quotes around text that begins with `*`)"),
        ("m: &.x", "1: not valid YAML: `&` begins an anchor (put quotes around text that begins with `&`)"),
        ("a: &x 1\nb: &x 2", "2: not valid YAML: this anchor is defined a second time (give it another name)"),
        ("m: !<x y", "1: not valid YAML: `!` begins a tag (put quotes around text that begins with `!`)"),
        ("m: !e!x y", "1: not valid YAML: `!` begins a tag (put quotes around text that begins with `!`)"),
        ("a: @x", "1: not valid YAML: unexpected character (put quotes around the value)"),
        ("a: `x`", "1: not valid YAML: unexpected character (put quotes around the value)"),
        ("a: %x", "1: not valid YAML: unexpected character (put quotes around the value)"),
        (
            "a: b: c",
            "1: not valid YAML: unexpected `:` (indent the line like its neighbours, or put quotes around the value)",
        ),
        (
            "a: 1\n  b: 2",
            "2: not valid YAML: unexpected `:` (indent the line like its neighbours, or put quotes around the value)",
        ),
        ("a:\n   b: 1\n  c: 2", "3: not valid YAML: this does not fit here (check the indentation and the quotes)"),
        ("a: 1\n- b", "2: not valid YAML: this does not fit here (check the indentation and the quotes)"),
        ("a: 'x' y", "1: not valid YAML: this does not fit here (check the indentation and the quotes)"),
        ("a: 1\nb\nc: 2", "2: not valid YAML: a key without `:` (write `key: value`)"),
        ("x: 1\na: 'b\nc: 1\nd: 2", "2: not valid YAML: the quote opened here is never closed (close it)"),
        ("x: 1\na: [1, 2", "2: not valid YAML: the `[` opened here is never closed (add `]`)"),
        ("x: 1\na: {b: 2", "2: not valid YAML: the `{` opened here is never closed (add `}`)"),
        ("a: [1,", "1: not valid YAML: a `[` or `{` is never closed (close it)"),
        ("a: [1, 2\nb: 2", "2: not valid YAML: a `,` or `]` is missing before this (the `[` is on line 1)"),
        ("a: {b: 1\nc: 2", "2: not valid YAML: a `,` or `}` is missing before this (the `{` is on line 1)"),
        ("a: {b: 1 c: 2}", "1: not valid YAML: a `,` or `}` is missing before this (the `{` is on line 1)"),
        (
            'a: "C:\\data"',
            "1: not valid YAML: unknown escape in double quotes (use single quotes, or write `\\\\` for a backslash)",
        ),
        ("x: 1\na: \x01", "2: character U+0001 is not allowed"),
        ("a: \0", " is not a text file"),
        ('a: "\\ud800"', "1: an escape stands for half a character (write the character itself)"),
        ("a: !foo x", "1: unknown tag `!foo` (remove it: a recipe holds plain values only)"),
        (
            "a: !!python/name:os.system",
            "1: unknown tag `!!python/name:os.system` (remove it: a recipe holds plain values only)",
        ),
        ("a: !!set {b}", "1: unknown tag `!!set` (remove it: a recipe holds plain values only)"),
        ("a: !!omap [b: 1]", "1: unknown tag `!!omap` (remove it: a recipe holds plain values only)"),
        ("a: !!int x", "1: `x` is not a valid int"),
        ("a: !!bool yes", "1: `yes` is not a valid bool"),
        (f"a: {'9' * 5000}", f"1: `{'9' * 40}` is not a valid int"),
        ("? [x]\n: 1", "1: a key is a list or a mapping (keys are plain text)"),
        ("'': 1", "1: a key is empty (write a name before the `:`)"),
        ("a: &a [*a]", "1: an alias refers to the value that holds it"),
        ("a: &a\n  <<: *a", "1: an alias refers to the value that holds it"),
        ("a: 1\n<<: 5", "2: `<<` merges mappings only (write `<<: *name` of a mapping)"),
        ("a: " + "[" * 70 + "]" * 70, "1: is nested too deeply"),
        ("a: " + "[" * 2000, " is nested too deeply"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_one_clear_sentence(text: str, sentence: str) -> None:
    assert complaint(text) == sentence


def test_aliases_that_unfold_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert complaint("\n".join(lines)) == " unfolds into more than 50000 values (use fewer aliases)"


def file_complaint(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path)
    return str(caught.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits-dit.yaml").write_text("a: 1")
    wrong = tmp_path / "digit-dit.yaml"
    assert file_complaint(wrong) == f"{wrong}: no such file (did you mean {tmp_path / 'digits-dit.yaml'}?)"
    assert file_complaint(tmp_path / "no" / "q.txt") == f"{tmp_path / 'no' / 'q.txt'}: no such file"


def test_a_folder(tmp_path: Path) -> None:
    assert file_complaint(tmp_path) == f"{tmp_path}: is a folder, not a recipe (name the .yaml file in it)"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not a text file in UTF-8"),
        ("name: Grün".encode("latin-1"), "is not a text file in UTF-8"),
        ("name: x".encode("utf-16-le"), "is not a text file"),
        (b"a: 1\n" + bytes(20), "is not a text file"),
        (b"# " + b"x" * (1 << 20), "is larger than 1 MiB; a recipe is a short text file"),
        (b"", "the recipe is empty (`compress schema` lists the keys)"),
    ],
    ids=["binary", "latin-1", "utf-16", "zeros", "large", "empty"],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, raw: bytes, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(raw)
    assert file_complaint(path) == f"{path}: {sentence}"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert file_complaint(tmp_path / "r.yaml") == f"{tmp_path / 'r.yaml'}: cannot be read: Permission denied"


def test_a_large_recipe_of_wide_lists_is_no_problem() -> None:
    source = parse("a:\n" + "\n".join(f"  - {{x: {i}}}" for i in range(2000)))
    assert len(source.data["a"]) == 2000
    assert source.where(("a", 1999, "x")) == "recipe.yaml:2001"
