"""Settings from the command line, `--set stages.0.method.keep=0.6`, laid over a recipe."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from compress.errors import RecipeError
from compress.recipe.source import KeyPath, Source, parse_value
from compress.recipe.words import counted, describe, dotted


class Override(NamedTuple):
    """One `--set`: the keys as written, the value, and the option as messages show it."""

    keys: tuple[str, ...]
    value: Any
    label: str


def parse_override(text: str) -> Override:
    """`a.b.0.c=value`, the value being YAML. Raises RecipeError.

    A key that itself has a dot in it cannot be addressed; set the mapping that holds it.
    """
    shown = " ".join(text.split())
    label = f"--set {shown if len(shown) <= 80 else shown[:79] + '…'}"
    path, equals, value_text = text.partition("=")
    if not equals:
        raise RecipeError("there is no `=`", where=label, hint="write --set key.key=value")
    keys = tuple(key.strip() for key in path.split("."))
    if not all(keys):
        raise RecipeError("a key is empty", where=label, hint="write --set key.key=value")
    try:
        value, _ = parse_value(value_text, label)
    except RecipeError as error:  # the value is one line: its line number says nothing
        raise RecipeError(error.message, where=label, hint=error.hint) from error
    return Override(keys, value, label)


def apply_overrides(source: Source, texts: Sequence[str]) -> Source:
    """The recipe with the overrides laid over it, in order; the later one wins. Raises RecipeError.

    Mappings that are not there are made, and a list grows by the index just past its end; whether a key is known is for
    validation to say. Paths that an override set have it, instead of a line, as their place.
    """
    data, lines, overrides = copy.deepcopy(source.data), dict(source.lines), dict(source.overrides)
    for override in map(parse_override, texts):
        made, path = _assign(data, override)
        for places in (lines, overrides):
            for below in [p for p in places if p[: len(path)] == path]:
                del places[below]
        overrides[made] = overrides[path] = override.label
    return replace(source, data=data, lines=lines, overrides=overrides)


def _assign(data: dict[str, Any], override: Override) -> tuple[KeyPath, KeyPath]:
    """Sets the value in place; returns the first path that was not there before, and the path that was set."""
    holder: Any = data
    path: KeyPath = ()
    made: KeyPath | None = None
    for depth, word in enumerate(override.keys):
        key = _key(holder, word, path, override.label)
        path = (*path, key)
        there = key in holder if isinstance(holder, dict) else key < len(holder)
        made = made if there or made else path
        rest = override.keys[depth + 1 :]
        if not rest:
            _store(holder, key, override.value)
        elif not there or holder[key] is None:
            _store(holder, key, [] if rest[0] == "0" else {})
        holder = holder[key] if rest else holder
    return made or path, path


def _key(holder: object, word: str, path: KeyPath, label: str) -> Any:
    """The word as a key of what is there: text for a mapping, an index for a list."""
    if isinstance(holder, dict):
        return word
    name = dotted(path)
    if not isinstance(holder, list):
        raise RecipeError(f"`{name}` is {describe(holder)} and has no keys", where=label)
    last = f"{name}.{len(holder)} appends"
    if not (word.isascii() and word.isdigit()):
        hint = f"write an index: {name}.0 is the first, {last}" if holder else f"write an index: {last}"
        raise RecipeError(f"`{name}` is a list, `{word}` is not an index", where=label, hint=hint)
    if int(word) > len(holder):
        raise RecipeError(
            f"`{name}` has {counted(len(holder), 'item')}, {word} is past the end", where=label, hint=last
        )
    return int(word)


def _store(holder: Any, key: Any, value: object) -> None:
    if isinstance(holder, list) and key == len(holder):
        holder.append(value)
    else:
        holder[key] = value
