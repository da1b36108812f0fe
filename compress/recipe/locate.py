"""From pydantic's errors to places in the recipe: tags and type names leave the path, one branch of a union stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from compress.recipe.schema import Schema, SchemaTree
from compress.recipe.source import KeyPath

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ABSENT = object()
"""The value of a key that is not there."""

WRONG_TYPE = frozenset({"literal_error", "enum", "none_required", "is_instance_of"})
UNION = "union"
"""Error type of a value that fits no branch of a union; its `alternatives` say what each wanted."""


class Branch(NamedTuple):
    """A branch that pydantic tried of the untagged union at `path`."""

    path: KeyPath
    label: str
    schema: Schema
    value: object


@dataclass(frozen=True)
class Finding:
    """One error of pydantic, placed: `schema` describes `path`, `parent` the mapping or list that holds it."""

    type: str
    path: KeyPath
    value: Any
    schema: Schema
    parent: Schema
    parent_value: Any
    context: Mapping[str, Any]
    message: str
    branches: tuple[Branch, ...] = ()
    alternatives: tuple[Finding, ...] = ()

    @property
    def wrong_type(self) -> bool:
        """Whether the value is of no use at all here, rather than wrong inside or out of bounds."""
        return self.type in WRONG_TYPE or self.type.endswith(("_type", "_parsing"))


def find(tree: SchemaTree, data: object, errors: list[ErrorDetails]) -> list[Finding]:
    """The errors placed in `data`; of the branches of a union only the one meant is kept.

    Where the `kind` is wrong, the keys beside it are those of another class, and are not held against this one.
    """
    found = _settle(tree, [_place(tree, data, error) for error in errors], 0)
    kinds = [f.path for f in found if f.type == "literal_error" and f.path[-1:] == ("kind",)]
    return [f for f in found if not any(f.path != kind and f.path[: len(kind) - 1] == kind[:-1] for kind in kinds)]


def _place(tree: SchemaTree, data: object, error: ErrorDetails) -> Finding:
    node, value = tree.root, data
    path: KeyPath = ()
    parent: Schema = {}
    parent_value: object = None
    branches: tuple[Branch, ...] = ()
    for index, part in enumerate(error["loc"]):
        if part == "[key]" and path:
            value = path[-1]  # the error is in the key, not in what it leads to
            continue
        if tree.options(node):
            untagged = "anyOf" in node
            node = tree.pick(node, str(part), value)
            branches += (Branch(path, str(part), node, value),) if untagged else ()
            continue
        below = value_at(value, part)
        missing = error["type"] == "missing" and index == len(error["loc"]) - 1
        if below is ABSENT and not missing:
            continue  # a name that pydantic added and the schema does not show, for example for a wrapped type
        parent, parent_value = node, value
        node, value, path = tree.child(node, part), below, (*path, part)
    return Finding(error["type"], path, value, node, parent, parent_value, error.get("ctx", {}), error["msg"], branches)


def value_at(value: object, key: str | int) -> object:
    """The value of a key or an index, or ABSENT."""
    if isinstance(value, dict):
        return value.get(key, ABSENT)
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    return ABSENT


def _settle(tree: SchemaTree, findings: list[Finding], depth: int) -> list[Finding]:
    """Keeps one branch of every union at this depth of nesting, then goes deeper."""
    kept: list[Finding] = []
    unions: dict[KeyPath, dict[str, list[Finding]]] = {}
    for finding in findings:
        if len(finding.branches) <= depth:
            kept.append(finding)
        else:
            branch = finding.branches[depth]
            unions.setdefault(branch.path, {}).setdefault(branch.label, []).append(finding)
    for path, by_label in unions.items():
        kept += _settle(tree, _meant(tree, path, list(by_label.values()), depth), depth + 1)
    return kept


def _meant(tree: SchemaTree, path: KeyPath, branches: list[list[Finding]], depth: int) -> list[Finding]:
    """The errors of the branch the author meant: the type fits, most keys known, fewest errors; else all as one."""
    fitting = [b for b in branches if not all(f.wrong_type and f.path == path for f in b)]
    if fitting:
        return max(fitting, key=lambda b: (_known_keys(tree, b[0], depth), -len(b)))
    every = tuple(finding for branch in branches for finding in branch)
    shared = every[0].branches[: depth + 1]
    return [replace(every[0], type=UNION, context={}, message="", branches=shared, alternatives=every)]


def _known_keys(tree: SchemaTree, finding: Finding, depth: int) -> int:
    branch = finding.branches[depth]
    value = branch.value
    return len(value.keys() & set(tree.fields(branch.schema, value))) if isinstance(value, dict) else 0
