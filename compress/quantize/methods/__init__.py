"""Published quantization methods, one file each; a line here makes one available everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from compress.quantize.job import Method
from compress.quantize.methods import nearest, ptq4dm, q_diffusion, quest, tfmq

_ALL = (nearest.METHOD, ptq4dm.METHOD, q_diffusion.METHOD, tfmq.METHOD, quest.METHOD)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

if TYPE_CHECKING:
    MethodSettings = Any
else:
    _SETTINGS = tuple(method.settings for method in _ALL)
    # Pydantic refuses a discriminator where there is nothing to tell apart.
    MethodSettings = Annotated[Union[_SETTINGS], Field(discriminator="kind")] if len(_ALL) > 1 else _SETTINGS[0]  # noqa: UP007
"""What a recipe's `method:` may be: the settings of any method, told apart by `kind`."""

__all__ = ["METHODS", "Method", "MethodSettings"]
