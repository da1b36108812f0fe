"""The Python face of the command line: `compress.run`, `compress.load`, `compress.Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from compress.checkpoint.load import load_denoiser
from compress.engine.job import Outcome, run_recipe
from compress.engine.run import RunOptions
from compress.recipe.model import Recipe, load_recipe

__all__ = ["Recipe", "load", "run"]


def run(recipe: str | Path, *, output: str | Path, overrides: Sequence[str] = (), fresh: bool = False) -> Outcome:
    """Carry out a recipe file, as `compress run` does.

    Args:
        output: folder of the results; a run of the same recipe that is found there continues.
        overrides: as `--set` takes them: `"stages.0.weights.format=int4"`.
        fresh: drop what is in the output folder first.

    Raises:
        CompressError: the recipe is wrong, or the run failed. A missed gate is no error: see `Outcome.exit_code`.
    """
    loaded = load_recipe(Path(recipe), tuple(overrides))
    return run_recipe(loaded, RunOptions(output=Path(output), fresh=fresh, quiet=True))


def load(checkpoint: str | Path, *, device: str = "cpu") -> nn.Module:
    """The denoiser of a checkpoint folder, ready to call; packed layers stay packed.

    Raises:
        CheckpointError: a tensor is missing or unexpected, or a newer version wrote it.
    """
    return load_denoiser(Path(checkpoint), device=device)
