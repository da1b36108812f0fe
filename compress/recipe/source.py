"""A recipe file as data, with the line and column of every key.

The text is read as YAML 1.2 core values: `true`/`false` are the only booleans (`yes`, `off` and `none` stay text),
`1e-4` is a number, dates stay text, and every mapping key is text. Custom tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from compress.config import suggest
from compress.errors import RecipeError
from compress.recipe.syntax import TAG, RecipeLoader, syntax_error

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of the recipe: `("stages", 0, "method")`."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 50_000  # aliases of aliases can unfold without bound


class Position(NamedTuple):
    """Where a key is written, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Source:
    """A recipe as written, after overrides.

    `lines` has the position of the key of every path, of every list item, and of the top (the empty path). `overrides`
    has the paths set from the command line, with the option that set them.
    """

    data: dict[str, Any]
    lines: Mapping[KeyPath, Position]
    path: Path
    text: str
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`recipe.yaml:12` for what was written there, `--set a.b=c` for what was overridden.

        A path that is not written (a missing key) has the place of the nearest one that holds it.
        """
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return self.overrides[path[:length]]
            if path[:length] in self.lines:
                return f"{self.path}:{self.lines[path[:length]].line}"
        return str(self.path)

    def order(self, path: KeyPath) -> tuple[int, int, int]:
        """Sort key: order of the text; what the command line set comes last, in its own order."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return (1, list(self.overrides).index(path[:length]), 0)
            if path[:length] in self.lines:
                return (0, *self.lines[path[:length]])
        return (0, 0, 0)


def load(path: Path | str) -> Source:
    """The recipe in a file. Raises RecipeError with one sentence for everything that can be wrong with the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise _missing_file(path) from error
    except IsADirectoryError as error:
        raise RecipeError("is a folder, not a recipe", where=str(path), hint="name the .yaml file in it") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"is larger than {MAX_BYTES >> 20} MiB; a recipe is a short text file", where=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError("is not a text file in UTF-8", where=str(path)) from error
    return parse(text, path)


def parse(text: str, path: Path | str = "recipe.yaml") -> Source:
    """The recipe in a text; `path` names it in messages. Raises RecipeError."""
    path = Path(path)
    data, lines = parse_value(text, str(path))
    if data is None:
        raise RecipeError("the recipe is empty", where=str(path), hint="`compress schema` lists the keys")
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else "a single value"
        raise RecipeError(f"the recipe is {found}, not a mapping", where=str(path), hint="write `key: value` lines")
    return Source(data=data, lines=lines, path=path, text=text)


def parse_value(text: str, name: str) -> tuple[Any, dict[KeyPath, Position]]:
    """Any YAML value (mapping, list or scalar) and the position of its keys. Raises RecipeError."""
    if "\0" in text:
        raise RecipeError("is not a text file", where=name)
    builder = _Builder(name)
    try:
        loader = RecipeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return (None if node is None else builder.build(node, (), ())), builder.lines
    except yaml.YAMLError as error:
        raise syntax_error(error, text, name) from error
    except RecursionError as error:
        raise RecipeError("is nested too deeply", where=name) from error


def _missing_file(path: Path) -> RecipeError:
    siblings = {str(p) for suffix in ("yaml", "yml") for p in path.parent.glob(f"*.{suffix}")}
    near = suggest(str(path), sorted(siblings))
    return RecipeError("no such file", where=str(path), hint=f"did you mean {near}?" if near else None)


class _Builder:
    """Turns composed nodes into data and notes where each key is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, Position] = {}
        self.count = 0

    def build(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
        """The value of a node; `above` are the nodes that hold it."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise RecipeError(f"unfolds into more than {MAX_VALUES} values", where=self.name, hint="use fewer aliases")
        if any(node is holder for holder in above):
            raise self.error(node, "an alias refers to the value that holds it")
        if len(above) > MAX_DEPTH:
            raise self.error(node, "is nested too deeply")
        self.lines.setdefault(path, _position(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self.mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.build(item, (*path, i), (*above, node)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.error(node, f"unknown tag `{_short(node.tag)}`", "remove it: a recipe holds plain values only")

    def mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        """Own keys first, then those of merged mappings (`<<: *base`) that it does not have itself."""
        result: dict[str, Any] = {}
        for key_node, value_node in self.pairs(node, above):
            key = self.key(key_node)
            if key not in result:
                self.lines[(*path, key)] = _position(key_node)
                result[key] = self.build(value_node, (*path, key), above)
        return result

    def pairs(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> list[tuple[yaml.Node, yaml.Node]]:
        own: list[tuple[yaml.Node, yaml.Node]] = []
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        first: dict[str, Position] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{TAG}merge":
                merged += self.merged(value_node, above)
                continue
            key = self.key(key_node)
            if key in first:
                line = first[key].line
                raise self.error(key_node, f"key `{key}` is written twice, first on line {line}", "remove one of them")
            first[key] = _position(key_node)
            own.append((key_node, value_node))
        return own + merged

    def merged(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> list[tuple[yaml.Node, yaml.Node]]:
        """Pairs that `<<: node` brings in; of several mappings the earlier one wins."""
        if any(node is holder for holder in above):
            raise self.error(node, "an alias refers to the value that holds it")
        if isinstance(node, yaml.MappingNode):
            return self.pairs(node, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            return [pair for item in node.value for pair in self.merged(item, (*above, node))]
        raise self.error(node, "`<<` merges mappings only", "write `<<: *name` of a mapping")

    def key(self, node: yaml.Node) -> str:
        """A mapping key, always as the text that is written."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a key is a list or a mapping", "keys are plain text")
        if not node.value:
            raise self.error(node, "a key is empty", "write a name before the `:`")
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text: str = node.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(node, "an escape stands for half a character", "write the character itself")
        try:
            match node.tag.removeprefix(TAG):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text.replace("_", ""), 0)
                case "float":
                    return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.replace("_", ""), flags=re.IGNORECASE))
        except (ValueError, KeyError) as error:
            raise self.error(node, f"`{text[:40]}` is not a valid {_short(node.tag).removeprefix('!!')}") from error
        raise self.error(node, f"unknown tag `{_short(node.tag)}`", "remove it: a recipe holds plain values only")

    def error(self, node: yaml.Node, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(message, where=f"{self.name}:{_position(node).line}", hint=hint)


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag
