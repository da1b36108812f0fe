"""JSON Schema of the settings classes: for editors, and as the map by which messages find their way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]


def json_schema(model_type: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what may be written for a model, for completion and checks in editors.

    It is pydantic's, plus `$schema`, `$id` and `title`; a union told apart by `kind` also says that `kind` is required,
    which pydantic enforces but its schema does not say, and without which editors match every variant that has a
    default for it.
    """
    body = model_type.model_json_schema(by_alias=True, mode="validation")
    _require_discriminators(body)
    title = body.pop("title", model_type.__name__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:compress:{model_type.__name__.lower()}",
        "title": title,
        **body,
    }


def _require_discriminators(node: object) -> None:
    if isinstance(node, list):
        for item in node:
            _require_discriminators(item)
    elif isinstance(node, dict):
        if "oneOf" in node and isinstance(node.get("discriminator"), dict):
            node["required"] = [node["discriminator"]["propertyName"]]
        for value in node.values():
            _require_discriminators(value)


class SchemaTree:
    """Walks a JSON Schema alongside a value. Every node it returns has its references and `null` branch resolved."""

    def __init__(self, root: Schema) -> None:
        self._definitions: Schema = root.get("$defs", {})
        self.root = self.resolve(root)

    def resolve(self, node: Schema) -> Schema:
        """The node behind references, one-branch wrappers and an optional `null`."""
        while True:
            if "$ref" in node:
                node = self._definitions[_last(node["$ref"])]
                continue
            wrapped = node.get("allOf") or [o for o in node.get("anyOf", ()) if o.get("type") != "null"]
            if len(wrapped) != 1:
                return node
            node = wrapped[0]

    def options(self, node: Schema) -> list[Schema]:
        """Branches of a union, unresolved and without `null`; empty for anything else."""
        branches = node.get("oneOf") or node.get("anyOf") or ()
        return [branch for branch in branches if branch.get("type") != "null"]

    def child(self, node: Schema, key: str | int) -> Schema:
        """Schema of a key or an index; empty when the schema does not say."""
        if isinstance(key, int):
            prefix = node.get("prefixItems", [])
            found = prefix[key] if key < len(prefix) else node.get("items", {})
        else:
            found = node.get("properties", {}).get(key, node.get("additionalProperties", {}))
        return self.resolve(found) if isinstance(found, dict) else {}

    def pick(self, node: Schema, label: str, value: object) -> Schema:
        """The branch of a union that pydantic calls `label`: a tag, a class name, or a description of the type."""
        tagged = node.get("discriminator", {}).get("mapping", {})
        if label in tagged:
            return self.resolve({"$ref": tagged[label]})
        options = self.options(node)
        if label.startswith("tagged-union"):
            options = [o for o in options if "oneOf" in self.resolve(o)] or options
        if label.startswith("literal["):
            options = [o for o in options if {"const", "enum"} & self.resolve(o).keys()] or options
        named = [o for o in options if any(re.search(rf"\b{re.escape(n)}\b", label) for n in _names(o))]
        return self._closest(named or options, value)

    def narrow(self, node: Schema, value: object) -> Schema:
        """The branch that a value belongs to: by its tag, else the one that knows most of its keys."""
        node = self.resolve(node)
        discriminator = node.get("discriminator", {})
        if discriminator and isinstance(value, dict):
            tag = value.get(discriminator["propertyName"])
            target = discriminator.get("mapping", {}).get(tag) if isinstance(tag, str) else None
            return self.resolve({"$ref": target}) if target else {}
        options = self.options(node)
        return self.narrow(self._closest(options, value), value) if options else node

    def fields(self, node: Schema, value: object) -> list[str]:
        """Names of the keys that the mapping `value` may have here, in the order of the class."""
        return list(self.narrow(node, value).get("properties", {}))

    def _closest(self, options: list[Schema], value: object) -> Schema:
        wanted = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else None
        resolved = [self.resolve(option) for option in options]
        fitting = [o for o in resolved if o.get("type") == wanted or (wanted == "object" and "oneOf" in o)] or resolved
        if not isinstance(value, dict):
            return fitting[0]
        return max(fitting, key=lambda option: len(value.keys() & set(self.fields(option, value))))


def _last(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]


def _names(option: Schema) -> list[str]:
    """Names that pydantic may give a branch: class name (a definition's name ends in it) and title."""
    names = [option["title"]] if "title" in option else []
    return [*names, _last(option["$ref"]).rsplit("__", 1)[-1]] if "$ref" in option else names
