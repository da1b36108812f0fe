"""The JSON Schema that editors complete from, and the walk along it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field
from recipe_standins import Standin, Tinyfusion

from compress.config import Config
from compress.recipe.schema import SchemaTree, json_schema


def nodes(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema(Standin)


def test_head(schema: dict[str, Any]) -> None:
    assert list(schema)[:3] == ["$schema", "$id", "title"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:compress:standin"
    assert schema["title"] == "Standin"
    assert schema["description"] == "One compression job."
    assert schema["additionalProperties"] is False


def test_it_is_plain_json_and_the_same_every_time(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema == json_schema(Standin)


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = [node["$ref"] for node in nodes(schema) if "$ref" in node]
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(schema["$defs"])


def test_every_key_but_kind_is_described(schema: dict[str, Any]) -> None:
    objects = [node for node in nodes(schema) if isinstance(node.get("properties"), dict)]
    assert len(objects) >= 12
    described = {
        name: "description" in field for node in objects for name, field in node["properties"].items() if name != "kind"
    }
    assert all(described.values()), described


def test_unions_keep_their_discriminator_and_require_it(schema: dict[str, Any]) -> None:
    unions = [node for node in nodes(schema) if "discriminator" in node]
    mappings = [sorted(node["discriminator"]["mapping"]) for node in unions]
    assert sorted(mappings) == [["bands", "uniform"], ["magnitude", "tinyfusion"], ["prune", "quantize"]]
    assert all(node["required"] == ["kind"] for node in unions)
    assert schema["$defs"]["Tinyfusion"]["properties"]["kind"]["const"] == "tinyfusion"


def test_bounds_and_choices_are_there_for_completion(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    assert definitions["Sampler"]["properties"]["steps"] == {
        "default": 20,
        "description": "Sampling steps.",
        "maximum": 1000,
        "minimum": 1,
        "title": "Steps",
        "type": "integer",
    }
    assert definitions["Source"]["properties"]["dtype"]["enum"] == ["float32", "float16"]


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ({"kind": "tinyfusion"}, ["kind", "keep", "iterations", "learning_rate"]),
        ({"kind": "magnitude"}, ["kind", "keep"]),
        ({"kind": "other"}, []),
        ({"kind": None}, []),
        ({}, []),
    ],
)
def test_the_keys_of_a_union_are_those_of_the_kind(
    schema: dict[str, Any], value: dict[str, Any], fields: list[str]
) -> None:
    tree = SchemaTree(schema)
    stages = tree.child(tree.root, "stages")
    prune = tree.narrow(tree.child(stages, 5), {"kind": "prune"})
    assert tree.fields(tree.child(prune, "method"), value) == fields


def test_a_union_without_kinds_goes_by_the_keys_it_is_given(schema: dict[str, Any]) -> None:
    tree = SchemaTree(schema)
    quantize = tree.narrow(tree.child(tree.child(tree.root, "stages"), 0), {"kind": "quantize"})
    weights = tree.child(quantize, "weights")
    assert tree.fields(weights, {"formats": []}) == ["budget", "formats"]
    assert tree.fields(weights, {"group": 1, "x": 1}) == ["format", "granularity", "group"]


def test_what_the_schema_does_not_describe_is_an_empty_node(schema: dict[str, Any]) -> None:
    tree = SchemaTree(schema)
    assert tree.child(tree.root, "nothing") == {}
    assert tree.child(tree.child(tree.root, "size"), 7) == {}
    assert tree.fields({}, {"a": 1}) == []


class Tree(Config):
    """A class that holds itself: its schema is a reference at the top."""

    method: Tinyfusion | None = Field(None, description="Leaf.")
    below: tuple[Tree, ...] = Field((), description="Branches.")


def test_a_class_that_holds_itself() -> None:
    tree = SchemaTree(json_schema(Tree))
    node = tree.child(tree.child(tree.root, "below"), 0)
    assert tree.fields(node, {}) == ["method", "below"]
    assert tree.fields(tree.child(node, "method"), {}) == ["kind", "keep", "iterations", "learning_rate"]
