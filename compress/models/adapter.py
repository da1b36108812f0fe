"""What a model family says about itself: layers and their roles, blocks, how to call the denoiser, noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from compress.models.noise import NoiseSchedule

Condition = Mapping[str, Tensor]
"""Keyword tensors of one denoiser call besides sample and timestep, batch first: `{"class_labels": [b]}`."""


class Role(StrEnum):
    """What a layer does in its model; recipes choose layers by these names."""

    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_OUT = "attention_out"
    FF_IN = "ff_in"
    FF_OUT = "ff_out"
    MODULATION = "modulation"
    TIME_EMBEDDING = "time_embedding"
    CLASS_EMBEDDING = "class_embedding"
    TEXT_EMBEDDING = "text_embedding"
    CONV = "conv"
    SKIP = "skip"
    IN_PROJECTION = "in_projection"
    OUT_PROJECTION = "out_projection"
    LINEAR = "linear"


@dataclass(frozen=True)
class LayerInfo:
    """One `nn.Linear` or `nn.Conv2d`.

    `split` is the input channel at which a skip-concatenation input divides into (backbone, skip), for role `skip`;
    None there means that the model's classes do not tell it.
    """

    name: str
    kind: str  # "linear" | "conv2d"
    role: Role
    block: str | None  # name of the block that holds it, None outside the blocks
    weight_shape: tuple[int, ...]
    has_bias: bool
    split: int | None = None

    @property
    def out_features(self) -> int:
        return self.weight_shape[0]

    @property
    def in_features(self) -> int:
        """Contracted length: in_features of a linear, in_channels / groups * kh * kw of a convolution."""
        size = 1
        for extent in self.weight_shape[1:]:
            size *= extent
        return size

    @property
    def weight_parameters(self) -> int:
        return self.out_features * self.in_features


class DenoiserInputs(NamedTuple):
    """One batch for the denoiser: sample `[b, c, h, w]`, timestep `[b]`, condition."""

    sample: Tensor
    timestep: Tensor
    condition: dict[str, Tensor]


@dataclass(frozen=True)
class ModelSource:
    """A pipeline in diffusers layout on disk: `model_index.json`, `scheduler/`, one folder per component.

    A folder that holds a bare component (its own `config.json`) is a source too; it then has no scheduler of its own.
    """

    name: str  # as the user wrote it: zoo://digits-dit, a path, hf://…
    folder: str
    denoiser: str  # component name: "transformer" | "unet" | "" for a bare component folder
    denoiser_class: str
    library: str = "diffusers"
    config: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)  # the denoiser's config.json


class Adapter(Protocol):
    """A model family. One instance per source; holds configuration, never weights."""

    family: str
    source: ModelSource

    def skeleton(self) -> nn.Module:
        """The denoiser on the meta device: every shape, no memory."""
        ...

    def load(self, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
        """The denoiser with its weights, in eval mode; strict. Raises ModelError."""
        ...

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The units of reconstruction and of block pruning in the order of computation, by qualified name.

        Transformer blocks; of a U-Net, residual and attention blocks. None lies in another, and not every layer lies
        in one.
        """
        ...

    def layers(self, model: nn.Module) -> list[LayerInfo]:
        """Every linear and convolution with its role, in definition order."""
        ...

    def conditioning_layers(self, model: nn.Module) -> list[LayerInfo]:
        """The layers whose input depends on the timestep and the class alone, in the order of computation.

        The embeddings and every block's projection of them: what TFMQ-DM calls the temporal information block (Huang et
        al. 2024). Raises ModelError where the family does not know them.
        """
        ...

    def conditioning(self, model: Any, timestep: Tensor, condition: Condition) -> Tensor:
        """What the blocks' projections read, `[b, c]`, before the activation that each of them applies itself.

        Runs the embeddings alone, for `timestep` `[b]`. Raises ModelError where the family does not know it.
        """
        ...

    def example_inputs(self, batch: int, *, device: str = "cpu", seed: int = 0) -> DenoiserInputs:
        """Inputs of the model's native size (device may be "meta")."""
        ...

    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        ...

    def class_count(self) -> int | None:
        """Number of classes of a class-conditional model, else None."""
        ...

    def class_condition(self, labels: Tensor) -> dict[str, Tensor]:
        """Condition for class labels `[b]`."""
        ...

    def null_condition(self, condition: Condition) -> dict[str, Tensor] | None:
        """The unconditional half for classifier-free guidance, or None if the model has none."""
        ...

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Raw prediction `[b, c, h, w]` of one forward; `timestep` `[b]` float or int; learned sigmas are cut off."""
        ...

    def noise_schedule(self) -> NoiseSchedule:
        """sigma <-> t and prediction type, from the source's scheduler folder."""
        ...
