"""Frozen settings, canonical JSON, hashes, and did-you-mean."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from compress.config import Config, canonical_json, content_hash, suggest


class Colour(StrEnum):
    RED = "red"


class Level(Enum):
    HIGH = 2


class Inner(Config):
    rate: float = 0.5
    edges: tuple[int, ...] = ()


class Outer(Config):
    model_name: str = "x"
    inner: Inner = Inner()
    path: Path | None = None


@dataclass(frozen=True)
class Facts:
    name: str
    inner: Inner


class Pair(NamedTuple):
    left: int
    right: float


def test_settings_are_frozen() -> None:
    settings: Any = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        settings.rate = 1.0


@pytest.mark.parametrize("values", [{"rte": 1}, {"rate": float("inf")}, {"rate": float("nan")}, {"rate": "abc"}])
def test_settings_refuse_unknown_keys_and_what_is_not_finite(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Inner(**values)


def test_a_key_may_begin_with_model() -> None:
    assert Outer(model_name="dit").model_name == "dit"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (2.0**60, "1152921504606846976"),
        ("é\n", '"\\u00e9\\n"'),
        ([1, (2, 3)], "[1,[2,3]]"),
        ({"b": 1, "a": {"d": 2, "c": 3}}, '{"a":{"c":3,"d":2},"b":1}'),
        ({1: "x", None: "y"}, '{"1":"x","null":"y"}'),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        (Colour.RED, '"red"'),
        ({Colour.RED: Level.HIGH}, '{"red":2}'),
        (Path("a") / "b", '"a/b"'),
        (Pair(1, 2.0), "[1,2]"),
        (Facts("x", Inner()), '{"inner":{"edges":[],"rate":0.5},"name":"x"}'),
        (Outer(path=Path("o")), '{"inner":{"edges":[],"rate":0.5},"model_name":"x","path":"o"}'),
    ],
    ids=str,
)
def test_canonical_json_of(value: object, text: str) -> None:
    assert canonical_json(value) == text
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (float("nan"), ValueError, "nan has no canonical JSON"),
        ({"a": [float("-inf")]}, ValueError, "-inf has no canonical JSON"),
        ({1: "x", "1": "y"}, ValueError, "become the same text '1'"),
        ({"a": object()}, TypeError, "object has no canonical JSON"),
        (b"bytes", TypeError, "bytes has no canonical JSON"),
        (Inner, TypeError, "has no canonical JSON"),
    ],
)
def test_canonical_json_refuses(value: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        canonical_json(value)


def test_the_hash_follows_meaning_not_order_or_spelling() -> None:
    assert content_hash({"a": 1, "b": (2.0, 3)}) == content_hash(OrderedDict(b=[2, 3.0], a=1.0))
    assert content_hash(Inner()) == content_hash(Inner(rate=0.5)) == content_hash({"rate": 0.5, "edges": []})
    assert content_hash(Inner()) != content_hash(Inner(rate=0.25))
    assert content_hash(1) != content_hash("1")
    assert content_hash(True) != content_hash(1)


def test_the_hash_is_pinned_because_finished_work_is_found_by_it() -> None:
    assert content_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


FORMATS = ["int8", "int4", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"]
KEYS = ["iterations", "learning_rate", "keep", "q_diffusion"]


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("int9", ["int8"], "int8"),
        ("iteratons", KEYS, "iterations"),
        ("Keep", KEYS, "keep"),
        ("KEEP", KEYS, "keep"),
        ("q-diffusion", KEYS, "q_diffusion"),
        ("fp4", FORMATS, "fp4_e2m1"),
        ("rate", KEYS, "learning_rate"),
        ("zzz", KEYS, None),
        ("", KEYS, None),
        ("k", KEYS, None),
        ("keep", [], None),
    ],
)
def test_suggest(word: str, known: list[str], meant: str | None) -> None:
    assert suggest(word, known) == meant
    assert suggest(word, iter(reversed(known))) == meant
