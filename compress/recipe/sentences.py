"""One sentence for each thing that can be wrong with a value in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from compress.config import suggest
from compress.recipe.locate import ABSENT, UNION, Finding, value_at
from compress.recipe.schema import SchemaTree
from compress.recipe.source import KeyPath
from compress.recipe.words import counted, describe, dotted, either, is_number, listed, literal, number, unknown


class Problem(NamedTuple):
    """A sentence about `path`, to be reported at the line of `at`.

    `meant` is the key that was probably meant, if it is not there: that it is missing need not be said as well.
    """

    at: KeyPath
    path: KeyPath
    text: str
    meant: KeyPath | None = None

    def __str__(self) -> str:
        """`stages.0.method: unknown key …`; at the top of the recipe the sentence alone."""
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


_EXPECTED = {
    "int_type": "integer",
    "int_parsing": "integer",
    "int_from_float": "integer",
    "float_type": "number",
    "float_parsing": "number",
    "decimal_type": "number",
    "string_type": "text",
    "path_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "list",
    "tuple_type": "list",
    "set_type": "list",
    "frozen_set_type": "list",
    "dict_type": "mapping",
    "mapping_type": "mapping",
    "model_type": "mapping",
    "model_attributes_type": "mapping",
    "dataclass_type": "mapping",
    "none_required": "nothing",
}
_LIMITS = {  # pydantic's error type: bound, name of the bound in the error's context, noun that is counted
    "greater_than": ("greater than", "gt", None),
    "greater_than_equal": ("at least", "ge", None),
    "less_than": ("less than", "lt", None),
    "less_than_equal": ("at most", "le", None),
    "multiple_of": ("a multiple of", "multiple_of", None),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
}
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def problem(tree: SchemaTree, finding: Finding) -> Problem:
    """What to say about one finding."""
    match finding.type:
        case "extra_forbidden":
            return _unknown_key(tree, finding)
        case "missing":
            return _missing_key(finding)
        case "union_tag_invalid" | "union_tag_not_found":
            return _wrong_kind(tree, finding)
        case "literal_error" | "enum":
            return _wrong_choice(finding)
        case "value_error" | "assertion_error" if "error" in finding.context:
            return _said(finding, str(finding.context["error"]))
    return Problem(finding.path, finding.path, _sentence(finding))


def _sentence(finding: Finding) -> str:
    if finding.type in _LIMITS:
        return _limit(finding)
    if finding.type in _EXPECTED or finding.type == UNION:
        return _type(finding)
    shown = describe(finding.value)
    match finding.type:
        case "finite_number":
            return f"must be finite, found {shown}"
        case "string_pattern_mismatch":
            return f"must match the pattern `{finding.context['pattern']}`, found {shown}"
    return f"{finding.message}, found {shown}"


def _unknown_key(tree: SchemaTree, finding: Finding) -> Problem:
    """A key that the class does not have: it belongs deeper, is misspelt, or has nothing to do here."""
    *above, key = finding.path
    holder, value = tuple(above), finding.parent_value
    fields = tree.fields(finding.parent, value)
    text = f"unknown key `{key}`"
    deeper = [name for name in fields if key in _keys_under(tree, finding, name)]
    if deeper:
        there = value_at(value_at(value, deeper[0]), str(key)) is not ABSENT
        meant = None if there or len(deeper) > 1 else (*holder, deeper[0], str(key))
        return Problem(finding.path, holder, f"{text}; it belongs under {either(map(literal, deeper))}", meant)
    absent = [name for name in fields if value_at(value, name) is ABSENT]
    near = suggest(str(key), absent) or suggest(str(key), fields)
    if near:
        meant = (*holder, near) if near in absent else None
        return Problem(finding.path, holder, f"{text}; did you mean `{near}`?", meant)
    return Problem(finding.path, holder, f"{text}; the keys here are {listed(fields)}" if fields else text)


def _keys_under(tree: SchemaTree, finding: Finding, name: str) -> list[str]:
    """Keys of the mapping that a neighbour of an unknown key is, or would be if it were there."""
    inside = value_at(finding.parent_value, name)
    inside = {} if inside in (None, ABSENT) else inside
    child = tree.child(tree.narrow(finding.parent, finding.parent_value), name)
    return tree.fields(child, inside) if isinstance(inside, dict) else []


def _missing_key(finding: Finding) -> Problem:
    *above, key = finding.path
    if isinstance(key, int):
        needed = len(finding.parent.get("prefixItems", []))
        return Problem(finding.path, tuple(above), f"item {key} is missing; {counted(needed, 'item')} needed")
    return Problem(finding.path, tuple(above), f"missing key `{key}`")


def _wrong_kind(tree: SchemaTree, finding: Finding) -> Problem:
    """A union told apart by `kind` whose kind is unknown, missing or misspelt."""
    if "discriminator" not in finding.schema:  # told apart by a function, which cannot say what it wants
        return Problem(
            finding.path, finding.path, f"fits none of the forms it may have, found {describe(finding.value)}"
        )
    key = finding.schema["discriminator"]["propertyName"]
    kinds = list(finding.schema["discriminator"].get("mapping", {}))
    path = (*finding.path, key)
    tag = value_at(finding.value, key)
    if isinstance(tag, str):
        return Problem(path, finding.path, unknown(key, tag, kinds))
    if tag is not ABSENT:
        return Problem(path, path, f"expected {either(map(literal, kinds))}, found {describe(tag)}")
    known = {name for option in tree.options(finding.schema) for name in tree.fields(option, finding.value)}
    for name in finding.value:
        if name not in known and suggest(name, [key]):
            text = f"unknown key `{name}`; did you mean `{key}`?"
            return Problem((*finding.path, name), finding.path, text, path)
    return Problem(path, finding.path, f"missing key `{key}` (known: {', '.join(kinds)})")


def _wrong_choice(finding: Finding) -> Problem:
    """A value that is none of those allowed. A `kind` that has only one is spoken of like a kind that has several."""
    choices, value, path = _choices(finding), finding.value, finding.path
    words = [choice for choice in choices if isinstance(choice, str)]
    if not isinstance(value, str) or not words or len(words) < len(choices):
        allowed = either(map(literal, choices)) if choices else finding.context.get("expected", "something else")
        return Problem(path, path, f"expected {allowed}, found {describe(value)}")
    if path[-1:] == ("kind",):
        return Problem(path, path[:-1], unknown("kind", value, words))
    return Problem(path, path, unknown("value", value, words))


def _choices(finding: Finding) -> list[object]:
    if "const" in finding.schema:
        return [finding.schema["const"]]
    return list(finding.schema.get("enum", []))


def _said(finding: Finding, message: str) -> Problem:
    """A validator's own sentence. `stages.1: …` of a validator that sees all stages is placed at that stage."""
    prefix, colon, rest = message.partition(": ")
    words = [int(word) if word.isdecimal() else word for word in prefix.split(".")] if colon else []
    value = finding.value
    for word in words:
        value = value_at(value, word)
    if not words or value is ABSENT:
        return Problem(finding.path, finding.path, message)
    path = (*finding.path, *words)
    return Problem(path, path, rest)


def _limit(finding: Finding) -> str:
    bound, name, noun = _LIMITS[finding.type]
    shown = number(finding.context[name])
    if noun is None:
        return f"must be {bound} {shown}, found {number(finding.value)}"
    count = len(finding.value) if isinstance(finding.value, str | list | dict) else describe(finding.value)
    return f"must have {bound} {counted(shown, noun)}, found {count}"


def _type(finding: Finding) -> str:
    """`expected integer, found 'abc' (text)`, with a remedy where there is a usual one."""
    wanted: list[str] = []
    words: list[str] = []
    for each in finding.alternatives or (finding,):
        choices = _choices(each) if each.type in ("literal_error", "enum") else []
        words += [choice for choice in choices if isinstance(choice, str)]
        wanted += [literal(choice) for choice in choices] or [_EXPECTED.get(each.type, each.message)]
    value = finding.value
    near = suggest(value, words) if isinstance(value, str) and words else None
    remedy = f"did you mean `{near}`?" if near else _remedy(finding, wanted)
    return f"expected {either(wanted)}, found {describe(value)}" + (f"; {remedy}" if remedy else "")


def _remedy(finding: Finding, wanted: list[str]) -> str | None:
    """What to write instead, where the slip is a usual one."""
    value = finding.value
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if "text" in wanted and isinstance(value, bool | int | float):
        return "put it in quotes"
    if "true or false" in wanted and isinstance(value, str) and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    if "integer" in wanted and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"write {int(value)}"
    if {"integer", "number"} & set(wanted) and isinstance(value, str) and is_number(value):
        return "remove the quotes"
    if wanted == ["list"] and (is_numeric or isinstance(value, str | dict)):
        return "put it in a list, `[…]` or `- …`"
    if "mapping" in wanted and isinstance(value, str):
        return _as_kind(finding, value)
    return None


def _as_kind(finding: Finding, value: str) -> str | None:
    """`write {kind: gptq}` where a mapping with that kind is wanted and only the kind was given."""
    for each in finding.alternatives or (finding,):
        discriminator: Mapping[str, Any] = each.schema.get("discriminator", {})
        key = discriminator.get("propertyName", "kind")
        only = each.schema.get("properties", {}).get(key, {}).get("const")
        kind = suggest(value, [only] if only else discriminator.get("mapping", {}))
        if kind:
            return f"write `{{{key}: {kind}}}`"
    return None
