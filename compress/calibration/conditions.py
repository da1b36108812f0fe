"""What every sample is conditioned on: class labels, texts, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from compress.calibration.sampler import ConditionPair
from compress.config import Config
from compress.errors import InputError, RecipeError
from compress.models.adapter import Adapter


class ClassConditions(Config):
    """Class labels, dealt to the samples in turn."""

    kind: Literal["classes"] = "classes"
    labels: tuple[int, ...] | None = Field(
        None, min_length=1, description="Labels that take turns; by default every class of the model."
    )
    path: str | None = Field(None, description="YAML file with a `labels` list, instead of `labels`.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.labels is not None and self.path is not None:
            raise ValueError("`labels` and `path` both name the classes; give one of them")
        return self


class NoConditions(Config):
    """Unconditional samples."""

    kind: Literal["none"] = "none"


class PromptConditions(Config):
    """Prompts from a text file, one a line; they take turns."""

    kind: Literal["prompts"] = "prompts"
    path: str = Field(description="Text file in UTF-8; empty lines and lines that begin with # are left out.")


class DatasetConditions(Config):
    """Prompts from a text column of a data set; they take turns."""

    kind: Literal["dataset"] = "dataset"
    id: str = Field(description="Data set on the Hugging Face hub, or a local folder.")
    split: str = Field("train", description="Split, e.g. `validation` or `train[:512]`.")
    column: str = Field("text", description="Column that holds the texts.")


ConditionSettings = Annotated[
    ClassConditions | NoConditions | PromptConditions | DatasetConditions, Field(discriminator="kind")
]


class ClassList(Config):
    """A class list file: `calibration/*.yaml`."""

    description: str = ""
    labels: tuple[int, ...] = Field(min_length=1, description="Class labels in the order of the samples.")


@runtime_checkable
class TextAdapter(Protocol):
    """What an adapter also offers when its pipeline has text encoders."""

    def text_condition(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Condition for the texts, batch first."""
        ...


@dataclass(frozen=True)
class Conditions:
    """Conditions of any sample, by its number: `conditions([0, 1, 2])`.

    Attributes:
        facts: JSON data that determines them all, for hashes and reports.
        make: the conditions of the samples with these numbers.
        labels: the class labels that take turns, None where samples have no class.
    """

    facts: Mapping[str, Any]
    make: Callable[[Sequence[int]], ConditionPair]
    labels: tuple[int, ...] | None = None

    def __call__(self, indices: Sequence[int]) -> ConditionPair:
        return self.make(indices)

    def labels_of(self, indices: Sequence[int]) -> Tensor | None:
        """Class label of every sample `[len(indices)]` int64, or None."""
        return None if self.labels is None else torch.tensor([self.labels[i % len(self.labels)] for i in indices])


def resolve_conditions(
    settings: ConditionSettings, adapter: Adapter, *, folders: Sequence[Path] = (Path(),)
) -> Conditions:
    """The conditions of every sample, for this model.

    Args:
        folders: where relative paths are looked up, in this order: the recipe's folder, then the current one.

    Raises:
        RecipeError: conditions of this kind do not suit the model, or a label is out of range.
        InputError: a file is missing or empty.
    """
    match settings:
        case ClassConditions():
            return _class_conditions(settings, adapter, folders)
        case NoConditions():
            return _no_conditions(adapter)
        case _:
            return _text_conditions(settings, adapter, folders)


def read_texts(settings: PromptConditions | DatasetConditions, folders: Sequence[Path]) -> list[str]:
    """The texts in their order. Raises InputError for a missing file, split or column, or when none is left."""
    if isinstance(settings, PromptConditions):
        path = _find(settings.path, folders)
        lines = (line.strip() for line in path.read_text(encoding="utf8").splitlines())
        where, texts = str(path), [line for line in lines if line and not line.startswith("#")]
    else:
        where, texts = settings.id, _dataset_texts(settings)
    if not texts:
        raise InputError("it holds no text", where=where, hint="give at least one prompt")
    return texts


def _dataset_texts(settings: DatasetConditions) -> list[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(settings.id, split=settings.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise InputError(f"cannot read split `{settings.split}`: {error}", where=settings.id) from error
    if settings.column not in rows.column_names:
        raise InputError(
            f"no column `{settings.column}`", where=settings.id, hint=f"columns: {', '.join(rows.column_names)}"
        )
    return [str(text) for text in rows[settings.column]]


def _find(path: str, folders: Sequence[Path]) -> Path:
    candidates = [folder / path for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(str(candidate.resolve()) for candidate in candidates)
    raise InputError(f"no such file: {path}", hint=f"looked for {tried}")


def _read_class_list(path: Path) -> tuple[int, ...]:
    import yaml

    try:
        return ClassList.model_validate(yaml.safe_load(path.read_text(encoding="utf8"))).labels
    except (yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"not a class list: {reason}", where=str(path), hint="e.g. `labels: [0, 1, 2]`") from error


def _class_conditions(settings: ClassConditions, adapter: Adapter, folders: Sequence[Path]) -> Conditions:
    classes = adapter.class_count()
    if classes is None:
        raise RecipeError(f"model family {adapter.family} takes no class labels", hint="use conditions {kind: none}")
    labels = settings.labels if settings.path is None else _read_class_list(_find(settings.path, folders))
    labels = tuple(range(classes)) if labels is None else labels
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise RecipeError(f"class label {wrong[0]} is out of range", hint=f"this model has classes 0 to {classes - 1}")

    def make(indices: Sequence[int]) -> ConditionPair:
        condition = adapter.class_condition(torch.tensor([labels[i % len(labels)] for i in indices]))
        return ConditionPair(condition, adapter.null_condition(condition))

    return Conditions({"kind": "classes", "labels": list(labels)}, make, labels)


def _no_conditions(adapter: Adapter) -> Conditions:
    """Nothing at all for an unconditional model, the null class for a class-conditional one."""
    if adapter.class_count() is None:
        needed = sorted(adapter.example_inputs(1, device="meta").condition)
        if needed:
            raise RecipeError(f"model family {adapter.family} needs a condition: {', '.join(needed)}")
        return Conditions({"kind": "none"}, lambda indices: ConditionPair({}, None))
    if adapter.null_condition(adapter.class_condition(torch.zeros(1, dtype=torch.long))) is None:
        raise RecipeError(
            f"model family {adapter.family} cannot do without a class label", hint="use conditions {kind: classes}"
        )

    def make(indices: Sequence[int]) -> ConditionPair:
        null = adapter.null_condition(adapter.class_condition(torch.zeros(len(indices), dtype=torch.long)))
        assert null is not None
        return ConditionPair(null, None)

    return Conditions({"kind": "none"}, make)


def _text_conditions(
    settings: PromptConditions | DatasetConditions, adapter: Adapter, folders: Sequence[Path]
) -> Conditions:
    if adapter.class_count() is not None:
        raise RecipeError(
            f"model family {adapter.family} takes class labels, not prompts", hint="use conditions {kind: classes}"
        )
    if not isinstance(adapter, TextAdapter):
        raise RecipeError(f"text conditions need a text encoder, which adapter {adapter.family} does not offer")
    texts, encoder = read_texts(settings, folders), adapter

    def make(indices: Sequence[int]) -> ConditionPair:
        condition = encoder.text_condition([texts[i % len(texts)] for i in indices])
        return ConditionPair(condition, adapter.null_condition(condition))

    return Conditions({"kind": settings.kind, "texts": texts}, make)
