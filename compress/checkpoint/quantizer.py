"""diffusers' side of a compressed component: a quantizer that swaps packed layers in before the weights are read.

diffusers has no public call to register a quantizer, so `register` adds to its two mappings. Its loader reads
`quant_method.value`, so the method must be an Enum member.
"""

from __future__ import annotations

import copy
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.quantization_config import QUANT_METHOD, check_version, from_config
from compress.errors import CheckpointError
from compress.quantize.attention import install_attention, is_attention_scale
from compress.quantize.cached_embeddings import EmbeddingCache, swap_embeddings
from compress.quantize.modules import PACKED_NAMES, QuantConv2d, QuantLinear, swap_layers


class QuantMethod(StrEnum):
    """The one value of `quant_method` that is ours."""

    COMPRESS = QUANT_METHOD


def _differences(loaded: set[str], expected: set[str], where: str) -> None:
    """Loading is strict: every tensor of the model is in the file, and no other.

    Raises:
        CheckpointError: names the first missing or unexpected tensors.
    """
    for kind, names in (("lacks", expected - loaded), ("has unexpected", loaded - expected)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"the checkpoint {kind} {shown}", where=where, hint="is the folder complete?")


@cache
def config_class() -> type[Any]:
    """The quantization config diffusers reads ours into; made on first use because its base lives in diffusers."""
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin

    class CompressConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """Holds `quantization_config` as it stands in config.json."""

        def __init__(self, **fields: Any) -> None:
            check_version(fields, "config.json")
            self.fields = {key: value for key, value in fields.items() if key != "quant_method"}
            self.quant_method = QuantMethod.COMPRESS

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": QUANT_METHOD, **copy.deepcopy(self.fields)}

        def to_diff_dict(self) -> dict[str, Any]:
            return self.to_dict()

    return CompressConfig


@cache
def quantizer_class() -> type[Any]:
    """The quantizer; made on first use because its base lives in diffusers."""
    from diffusers.quantizers.base import DiffusersQuantizer

    class CompressQuantizer(DiffusersQuantizer):  # type: ignore[misc]
        """Loads packed layers; scales keep their stored type whatever `torch_dtype` is asked for."""

        requires_calibration = True  # only loads what `compress run` made

        def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
            self.loaded, self.where = set(loaded_keys), str(checkpoint_files[0])
            return loaded_keys

        def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
            config = self.quantization_config.to_dict()
            swap_layers(model, from_config(config, self.where))
            install_attention(model, config.get("attention"), where=self.where)
            if (cache := EmbeddingCache.from_config(config, self.where)) is not None:
                swap_embeddings(model, cache)

        def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
            _differences(self.loaded, set(model.state_dict()), self.where)
            return missing_keys

        def check_if_quantized_param(
            self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
        ) -> bool:
            layer, _, name = param_name.rpartition(".")
            packed = name in PACKED_NAMES and isinstance(model.get_submodule(layer), QuantLinear | QuantConv2d)
            return packed or is_attention_scale(model, param_name)

        def check_quantized_param_shape(self, name: str, expected: Any, given: Tensor) -> bool:
            found = tuple(expected.shape) if isinstance(expected, Tensor) else tuple(expected)
            raise CheckpointError(f"shape {tuple(given.shape)} where {found} belongs", where=f"{self.where}: {name}")

        def create_quantized_param(
            self,
            model: nn.Module,
            param_value: Tensor,
            param_name: str,
            target_device: torch.device,
            state_dict: dict[str, Any],
            *args: Any,
            **kwargs: Any,
        ) -> None:
            layer, _, name = param_name.rpartition(".")
            module = model.get_submodule(layer)
            wanted: Tensor = getattr(module, name)
            module.register_buffer(name, state_dict[param_name].to(device=target_device, dtype=wanted.dtype))

        def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
            return model

        @property
        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False

    return CompressQuantizer


def register() -> None:
    """Teach diffusers to load compressed components; calling it again changes nothing."""
    from diffusers.quantizers import auto

    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = config_class()
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = quantizer_class()
