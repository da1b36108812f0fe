"""Any denoiser class of diffusers, by its configuration, the signature of its forward and the names of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.adapter import Condition, DenoiserInputs, LayerInfo, ModelSource, Role
from compress.models.inputs import Draw, example_condition
from compress.models.layout import component_folder, pipeline_index, scheduler_config
from compress.models.loading import build_skeleton, denoiser_class, load_denoiser
from compress.models.noise import NoiseSchedule
from compress.models.roles import RULES, Rule, describe_layers, find_blocks


class GenericAdapter:
    """Adapter of a model without a family file of its own. Families subclass it and override what they know better."""

    family = "generic"
    rules: ClassVar[Sequence[Rule]] = RULES
    conditioning_roles: ClassVar[frozenset[Role]] = frozenset()  # of the layers that see timestep and class only
    flow_timesteps: ClassVar[frozenset[str]] = frozenset({"SD3Transformer2DModel", "FluxTransformer2DModel"})

    def __init__(self, source: ModelSource) -> None:
        self.source = source

    def skeleton(self) -> nn.Module:
        """The denoiser on the meta device: every shape, no memory."""
        return build_skeleton(self.source)

    def load(self, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
        """The denoiser with its weights, in eval mode; strict. Raises ModelError."""
        return load_denoiser(self.source, dtype, device)

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The repeated blocks in the order of computation, by qualified name."""
        return find_blocks(model)

    def layers(self, model: nn.Module) -> list[LayerInfo]:
        """Every linear and convolution with its role, in definition order."""
        return describe_layers(model, [name for name, _ in self.blocks(model)], self.rules)

    def conditioning_layers(self, model: nn.Module) -> list[LayerInfo]:
        """The layers whose input depends on the timestep and the class alone, in the order of computation.

        Raises:
            ModelError: nobody has told which these are; in text models the prompt may join the timestep.
        """
        if not self.conditioning_roles:
            raise self._unknown_conditioning()
        return [layer for layer in self.layers(model) if layer.role in self.conditioning_roles]

    def conditioning(self, model: Any, timestep: Tensor, condition: Condition) -> Tensor:
        """What the blocks' projections read, `[b, c]`, before the activation that each of them applies itself.

        Raises:
            ModelError: nobody has told how this family computes it.
        """
        raise self._unknown_conditioning()

    def example_inputs(self, batch: int, *, device: str = "cpu", seed: int = 0) -> DenoiserInputs:
        """Inputs of the model's native size; timesteps are int64, for flow models float32.

        Raises:
            ModelError: the inputs of this class are not known.
        """
        draw = Draw(batch, device, torch.Generator().manual_seed(seed))
        condition = example_condition(self.source.denoiser_class, self.config, draw)
        timestep = draw.integers(self.config.get("num_train_timesteps") or 1000)
        if self.source.denoiser_class in self.flow_timesteps:
            timestep = timestep.float()
        return DenoiserInputs(draw.normal(*self.sample_shape()), timestep, condition)

    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        size = self.config.get("sample_size")
        if size is None:
            raise ModelError("has no sample_size", where=str(component_folder(self.source) / "config.json"))
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.config["in_channels"]), int(height), int(width)

    def class_count(self) -> int | None:
        """Number of classes, the null class not counted, or None for a model without a class table."""
        rows = self._class_rows
        return rows if rows is None or self.null_class() is None else rows - 1

    def null_class(self) -> int | None:
        """Class index that means "no class": `null_class` of the pipeline's model_index.json, else None.

        Raises:
            ModelError: it is not the last row of the class table, so that the classes would not be 0 … n - 1.
        """
        folder, rows = Path(self.source.folder), self._class_rows
        null: int | None = pipeline_index(folder).get("null_class")
        if null is None or rows is None:
            return None
        if null != rows - 1:
            raise ModelError(
                f"null_class {null} is not the last of {rows} rows of the class table",
                where=str(folder / "model_index.json"),
                hint="only a last row can mean no class here; without `null_class` the model samples without guidance",
            )
        return null

    def class_condition(self, labels: Tensor) -> dict[str, Tensor]:
        """Condition for class labels `[b]`; empty for an unconditional model.

        Raises:
            ModelError: the model is conditioned on something else.
        """
        if self.class_count() is not None:
            return {"class_labels": labels}
        if "encoder_hidden_states" in self._parameters or self.config.get("class_embed_type") is not None:
            raise ModelError(
                f"{self.source.denoiser_class} of this configuration takes embeddings, not class labels",
                hint="use conditions of kind prompts",
            )
        return {}

    def null_condition(self, condition: Condition) -> dict[str, Tensor] | None:
        """The unconditional half for classifier-free guidance, or None if the model's files name none.

        A text model's null condition is the embedding of its empty prompt, which only its pipeline can compute.
        """
        null = self.null_class()
        if null is None or "class_labels" not in condition:
            return None
        return {**condition, "class_labels": torch.full_like(condition["class_labels"], null)}

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Raw prediction `[b, c, h, w]` of one forward; `timestep` is `[b]`, learned sigmas are cut off.

        Condition tensors that the forward does not name travel in its `added_cond_kwargs`, if it has them.
        """
        output: Tensor = model(sample, timestep=timestep, **self._keywords(condition), return_dict=False)[0]
        channels = sample.shape[1]
        return output[:, :channels] if output.shape[1] == 2 * channels else output

    def noise_schedule(self) -> NoiseSchedule:
        """sigma <-> t and prediction type, from the source's scheduler folder. Raises ModelError without one."""
        return NoiseSchedule.from_scheduler_config(scheduler_config(self.source))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The denoiser's configuration, with the defaults of its class where the file is silent."""
        signature = inspect.signature(denoiser_class(self.source).__init__).parameters
        defaults = {name: p.default for name, p in signature.items() if p.default is not inspect.Parameter.empty}
        return defaults | self.source.config

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(denoiser_class(self.source).forward).parameters)

    @property
    def _class_rows(self) -> int | None:
        """Rows of the class table; with a `class_embed_type` diffusers builds none."""
        rows: int | None = self.config.get("num_class_embeds")
        return rows if self.config.get("class_embed_type") is None else None

    def _unknown_conditioning(self) -> ModelError:
        return ModelError(
            f"which part of {self.source.denoiser_class} depends on timestep and class alone is not known",
            hint="use a method that does not treat the time path apart",
        )

    def _keywords(self, condition: Condition) -> dict[str, Any]:
        named: dict[str, Any] = {key: value for key, value in condition.items() if key in self._parameters}
        added = {key: value for key, value in condition.items() if key not in named}
        if added and "added_cond_kwargs" not in self._parameters:
            raise ModelError(
                f"{self.source.denoiser_class} takes no {', '.join(sorted(added))}",
                hint=f"it takes {', '.join(sorted(self._parameters - {'self', 'return_dict'}))}",
            )
        return named | ({"added_cond_kwargs": added} if added else {})
