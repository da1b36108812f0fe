"""Published quantization methods, one file each; a line here makes one available everywhere."""

from __future__ import annotations

from compress.quantize.job import Method
from compress.quantize.methods import nearest
from compress.quantize.methods.nearest import Nearest

METHODS: dict[str, Method] = {method.name: method for method in (nearest.METHOD,)}
MethodSettings = Nearest
"""What a recipe's `method:` may be; a union on `kind` as soon as there is a second method."""

__all__ = ["METHODS", "Method", "MethodSettings"]
