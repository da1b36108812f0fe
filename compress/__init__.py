"""Make pretrained diffusion models small and fast after training, and prove what it cost in quality.

import compress

outcome = compress.run("recipes/digits-dit-w8a8.yaml", output="runs/digits-dit-w8a8")
model = compress.load("runs/digits-dit-w8a8/checkpoint")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import Recipe, load, run

__all__ = ["Recipe", "load", "run"]


def __getattr__(name: str) -> Any:
    """Public names, imported when first used: `import compress` alone loads neither torch nor diffusers."""
    if name in __all__:
        from compress import api

        return getattr(api, name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")
