"""The recipe: validated intent, as a person writes it in recipe.yaml (ARCHITECTURE section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.calibration.conditions import ClassConditions, ConditionSettings
from compress.calibration.policies import TimestepPolicy, UniformTimesteps
from compress.calibration.sampler import Sampler
from compress.config import Config
from compress.errors import RecipeError
from compress.recipe.overrides import apply_overrides
from compress.recipe.source import Source, load
from compress.recipe.validate import validate
from compress.report.gates import Gate
from compress.stages.evaluate.settings import EvaluateEntry
from compress.stages.export import Export
from compress.stages.prune import Prune
from compress.stages.quantize import Quantize

StageSettings = Annotated[Prune | Quantize, Field(discriminator="kind")]


class Model(Config):
    """The pretrained model."""

    source: str = Field(
        min_length=1, description="zoo://NAME, a folder in diffusers layout, or hf://org/name@revision."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type the original computes in, and the compressed model outside its packed layers."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run; auto takes CUDA if present.")


class Calibration(Config):
    """The full-precision model's own sampling, which all calibration data come from."""

    sampler: Sampler = Sampler(guidance_scale=1.5)
    conditions: ConditionSettings = ClassConditions()
    samples: int = Field(64, ge=1, description="Sampled images whose model calls are logged.")
    timesteps: TimestepPolicy = Field(UniformTimesteps(), description="Which of a sample's model calls are logged.")


class Recipe(Config):
    """One compression job."""

    version: Literal[1] = Field(1, description="Version of the recipe format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name in reports.")
    seed: int = Field(0, ge=0, lt=2**31, description="Every random draw follows from it.")
    model: Model
    calibration: Calibration = Calibration()
    stages: tuple[StageSettings, ...] = Field(description="What is done to the model, in this order.")
    export: Export = Export()
    evaluate: tuple[EvaluateEntry, ...] = Field((), description="What is measured, on the reloaded artefacts.")
    gates: tuple[Gate, ...] = Field((), description="Bounds on metrics; a missed one makes the exit code 1.")

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        kinds = [stage.kind for stage in self.stages]
        for number, kind in enumerate(kinds):
            if kind == "prune" and "quantize" in kinds[:number]:
                raise ValueError(
                    f"stages.{number}: `prune` must come before `quantize`: packed weights cannot be cut; move it up"
                )
            if kind == "quantize" and "quantize" in kinds[:number]:
                raise ValueError(
                    f"stages.{number}: the denoiser is quantized already; merge both into one stage by `rules`"
                )
        return self


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the text it came from, for messages with line numbers and for relative paths."""

    recipe: Recipe
    source: Source

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self.source.path.resolve().parent

    def folders(self) -> tuple[Path, ...]:
        """Where relative paths are looked up: beside the recipe, then in the current folder."""
        return (self.folder, Path())

    def model_name(self) -> str:
        """The model source with a relative folder resolved; other kinds of source as they are."""
        name = self.recipe.model.source
        if "://" in name:
            return name
        found = (folder / Path(name).expanduser() for folder in self.folders())
        return next((str(path) for path in found if path.is_dir()), name)

    @contextmanager
    def locating(self, *path: str | int) -> Iterator[None]:
        """Give a RecipeError raised inside the line of the key it concerns, below `path`."""
        try:
            yield
        except RecipeError as error:
            keys = (*path, *error.path)
            dotted = ".".join(map(str, keys))
            place = f"{self.source.where(keys)}: {dotted}" if error.where is None else error.where
            raise RecipeError(error.message, where=place, hint=error.hint) from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe of a YAML file with `--set` overrides applied.

    Raises:
        RecipeError: every problem on a line of its own, with the line of the file it is on.
    """
    source = apply_overrides(load(path), overrides)
    return LoadedRecipe(validate(Recipe, source), source)
