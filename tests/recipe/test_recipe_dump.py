"""The lock file: everything written out, the same every time, equal when read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field, computed_field
from recipe_standins import TEXT, Standin

from compress.config import Config
from compress.recipe.dump import dump
from compress.recipe.source import parse
from compress.recipe.validate import validate


def reloaded(recipe: Config) -> Config:
    return validate(type(recipe), parse(dump(recipe)))


def test_defaults_are_filled_in_and_the_order_is_that_of_the_class() -> None:
    minimal = "stages:\n- {kind: prune, method: {kind: tinyfusion}}\nmodel: {source: x}\nname: n\n"
    assert dump(validate(Standin, parse(minimal))) == (
        "version: 1\n"
        "name: n\n"
        "seed: 0\n"
        "model: {source: x, dtype: float32}\n"
        "calibration:\n"
        "  sampler: {kind: ddim, steps: 20, guidance_scale: 1.0}\n"
        "  samples: 64\n"
        "  timesteps: {kind: uniform, count: 20}\n"
        "stages:\n"
        "- kind: prune\n"
        "  component: denoiser\n"
        "  method: {kind: tinyfusion, keep: 0.5, iterations: 100, learning_rate: 0.0001}\n"
        "output: null\n"
        "size: [8, 8]\n"
        "notes: {}\n"
        "gates: []\n"
    )


def test_the_whole_stand_in_reloads_equal_and_dumps_the_same() -> None:
    recipe = validate(Standin, parse(TEXT + "output: a/b\nnotes: {'1': 2, on: 3}\nsize: [3, 5]\n"))
    again = reloaded(recipe)
    assert again == recipe
    assert dump(again) == dump(recipe)


class Anything(Config):
    text: str = ""
    number: float = 0.0
    whole: int = 0
    flag: bool = False
    words: tuple[str, ...] = ()
    by_name: dict[str, str] = Field(default_factory=dict)
    path: Path = Path()


TEXTS = [
    "yes", "no", "on", "off", "none", "null", "~", "true", "", " ", "12", "010", "1e-4", "1E5", "1_000", "0x1F", "0o7",
    "1:30", "2024-01-01", ".inf", ".nan", "=", "<<", "-", "- a", "a: b", "a #b", "#a", "*.proj_out", "&x", "!x", "%x",
    "@x", "`x`", "[", "]", "{", "}", ",", "a, b", "'", '"', "\\d", "a\nb", "a\n\nb\n", "\ttab", "trailing ", "x" * 300,
    "word " * 60, "é", "日本語", "\u2028", "\u0085", "\x07", "\U0001f600", "\ufeff", "a\rb",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_survives(text: str) -> None:
    recipe = Anything(text=text, words=(text, text), by_name={text or "key": text})
    assert reloaded(recipe) == recipe


@pytest.mark.parametrize("text", ["yes", "off", "2024-01-01", "1:30", "010", "1e-4"])
def test_a_reader_of_yaml_1_1_sees_the_same_text(text: str) -> None:
    assert yaml.safe_load(dump(Anything(text=text)))["text"] == text


@pytest.mark.parametrize("number", [0.0, 1.0, -2.5, 0.1, 1e-7, 1e22, 5e-324, 1.7976931348623157e308, 1 / 3])
def test_any_number_survives_to_the_last_bit(number: float) -> None:
    assert reloaded(Anything(number=number)) == Anything(number=number)


@pytest.mark.parametrize("values", [{"whole": -(2**62)}, {"flag": True}, {"path": Path("a b/ü.yaml")}])
def test_other_values_survive(values: dict[str, Any]) -> None:
    assert reloaded(Anything(**values)) == Anything(**values)


def test_shared_values_are_written_out_without_aliases() -> None:
    words = ("a", "b")

    class Twice(Config):
        first: tuple[str, ...] = words
        second: tuple[str, ...] = words

    assert dump(Twice()) == "first: [a, b]\nsecond: [a, b]\n"


def test_computed_values_are_left_out() -> None:
    class Square(Config):
        side: int = 3

        @computed_field
        def area(self) -> int:
            return self.side**2

    assert dump(Square()) == "{side: 3}\n"
    assert reloaded(Square()) == Square()
