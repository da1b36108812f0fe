"""A resolved recipe as YAML: every default filled in, the same text every time, equal when loaded again."""

from __future__ import annotations

import yaml
from pydantic import BaseModel

from compress.recipe.syntax import SCALARS, TAG


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or our reader would take for something other than text; writes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Double quotes around Unicode's line breaks: PyYAML would write them raw, and read a line feed back."""
    style = '"' if {"\u0085", "\u2028", "\u2029"} & set(text) else None
    return dumper.represent_scalar(f"{TAG}str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def dump(recipe: BaseModel) -> str:
    """YAML of the fully resolved recipe, for `recipe.lock.yaml`: keys in class order, short values in braces.

    Loading the text and validating it as the same class gives an equal recipe.
    """
    data = recipe.model_dump(mode="json", by_alias=True, round_trip=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=2**20)
