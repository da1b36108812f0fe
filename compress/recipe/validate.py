"""A settings tree from a recipe, or one RecipeError that names every problem with its line."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from compress.errors import CompressError, RecipeError
from compress.recipe.locate import find
from compress.recipe.schema import SchemaTree, json_schema
from compress.recipe.sentences import Problem, problem
from compress.recipe.source import Source

M = TypeVar("M", bound=BaseModel)


def validate(model_type: type[M], source: Source) -> M:
    """The recipe as `model_type`.

    Types are strict, as JSON has them: lists become tuples and text becomes a path or an enum member, but "3" is not a
    number, 1 is not true and 2.0 is not an integer.

    Raises:
        RecipeError: one line for every problem, in the order of the file:
            `recipe.yaml:12: stages.0.method: unknown key `iteratons`; did you mean `iterations`?`.
    """
    try:
        return model_type.model_validate_json(json.dumps(source.data), strict=True)
    except ValidationError as error:
        tree = SchemaTree(json_schema(model_type))
        findings = find(tree, source.data, error.errors(include_url=False, include_input=False))
        raise _report(source, [problem(tree, finding) for finding in findings]) from error
    except CompressError as error:  # raised by a validator that knows no lines
        raise RecipeError(str(error), where=str(source.path)) from error


def _report(source: Source, problems: list[Problem]) -> RecipeError:
    meant = {each.meant for each in problems}
    told = [each for each in problems if each.at not in meant]  # a misspelt key is also a missing one: say it once
    lines = {f"{source.where(each.at)}: {each}": None for each in sorted(told, key=lambda p: source.order(p.at))}
    if len(lines) == 1:
        return RecipeError(str(told[0]), where=source.where(told[0].at))
    return RecipeError("\n".join(lines))
