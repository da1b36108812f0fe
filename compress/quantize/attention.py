"""Quantized attention: q, k, v and the softmax's output as integers, so that both products are integer products.

Li et al. 2023, "Q-Diffusion" (arXiv 2302.04304), quantizes every matrix product: q, k and v with the activations' bits,
the softmax's output with bits of its own, unsigned and without a zero point (`s = max / (2^b - 1)`). Departures: q, k
and v are always symmetric (the released code is asymmetric where activations are), their scales come from the recipe's
observer over the full-precision trajectory and are not learned, and the softmax's largest value counts as 1 unless
`softmax_range: observed` asks for the largest one that the trajectory has, which is what the released code takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from compress.config import Config
from compress.errors import CheckpointError, UnsupportedLayer
from compress.quantize.attention_processor import SCALE_NAMES, QuantizedAttention

__all__ = [
    "SCALE_NAMES",
    "AttentionSettings",
    "AttentionSpec",
    "attention_modules",
    "attention_spec",
    "install_attention",
    "is_attention_scale",
]

_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


class AttentionSettings(Config):
    """Bits of the operands of attention's two products."""

    bits: Literal[4, 8] = Field(8, description="Of queries, keys and values.")
    softmax_bits: Literal[8, 16] = Field(
        8, description="Of the softmax's output. 16 has no integer product in onnxruntime and is computed in float32."
    )
    softmax_range: Literal["one", "observed"] = Field(
        "one", description="Largest softmax value: 1, or the largest that the trajectory has (Q-Diffusion's choice)."
    )


@dataclass(frozen=True)
class AttentionSpec:
    """Which attention modules of a model are quantized, and with how many bits."""

    targets: tuple[str, ...]
    bits: int
    softmax_bits: int

    def as_config(self) -> dict[str, Any]:
        """The entry `attention` of `quantization_config`."""
        return {
            "targets": list(self.targets),
            "num_bits": self.bits,
            "softmax_bits": self.softmax_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "tensor",
            "dynamic": False,
        }

    @classmethod
    def from_config(cls, entry: Mapping[str, Any], where: str = "config.json") -> AttentionSpec:
        """What `as_config` wrote. Raises CheckpointError for a field that is missing or that this version cannot do."""
        try:
            spec = cls(tuple(entry["targets"]), entry["num_bits"], entry["softmax_bits"])
        except KeyError as error:
            raise CheckpointError(f"attention lacks {error}", where=where) from None
        if spec.bits not in (4, 8) or spec.softmax_bits not in (8, 16):
            found = f"{spec.bits} bits, softmax {spec.softmax_bits}"
            raise CheckpointError(f"attention has {found}", where=where, hint="upgrade with `pip install -U compress`")
        return spec


def attention_spec(settings: AttentionSettings | None, model: nn.Module) -> AttentionSpec | None:
    """The spec of a stage for a model (a skeleton will do); None without settings.

    Raises:
        UnsupportedLayer: as `attention_modules`.
    """
    if settings is None:
        return None
    return AttentionSpec(tuple(attention_modules(model)), settings.bits, settings.softmax_bits)


def attention_modules(model: nn.Module) -> list[str]:
    """Names of the attention modules, in definition order: diffusers' `Attention` with its plain processors.

    Raises:
        UnsupportedLayer: there is none, or one is of another class or has another processor; names it.
    """
    names = []
    for name, module in model.named_modules():
        if callable(getattr(module, "set_processor", None)):
            _check_supported(name, module)
            names.append(name)
    if not names:
        raise UnsupportedLayer(
            f"{type(model).__name__} has no attention that can be quantized", hint="leave out `attention`"
        )
    return names


def _check_supported(name: str, module: Any) -> None:
    """Raises UnsupportedLayer for what `QuantizedAttention` does not compute."""
    from diffusers.models.attention_processor import Attention

    hint = "leave out `attention`: diffusers' Attention with AttnProcessor or AttnProcessor2_0 can be quantized"
    if type(module) is not Attention:
        raise UnsupportedLayer(f"{type(module).__name__} cannot be quantized", where=name, hint=hint)
    processor = type(module.processor)
    if processor is not QuantizedAttention and processor.__name__ not in _PROCESSORS:
        raise UnsupportedLayer(f"Attention with {processor.__name__} cannot be quantized", where=name, hint=hint)
    if module.spatial_norm is not None:
        raise UnsupportedLayer("Attention with a spatial norm cannot be quantized", where=name, hint=hint)


def install_attention(
    model: nn.Module,
    entry: AttentionSpec | Mapping[str, Any] | None,
    device: str | torch.device = "meta",
    where: str = "config.json",
) -> None:
    """Give the attention modules of a spec, or of `quantization_config`'s entry `attention`, unfilled processors.

    Their scales are buffers, `<module>.processor.query_scale` and so on, and so part of the model's state.

    Raises:
        UnsupportedLayer: a target is not in the model or not supported. CheckpointError: the entry is damaged.
    """
    if entry is None:
        return
    spec = entry if isinstance(entry, AttentionSpec) else AttentionSpec.from_config(entry, where)
    modules: dict[str, Any] = dict(model.named_modules())
    for name in spec.targets:
        if name not in modules:
            raise UnsupportedLayer("the model has no such module", where=name, hint="does the config fit the weights?")
        _check_supported(name, modules[name])
        modules[name].set_processor(QuantizedAttention(spec.bits, spec.softmax_bits, device))


def is_attention_scale(model: nn.Module, tensor_name: str) -> bool:
    """Whether a tensor of the model's state is a scale of quantized attention, which keeps its stored type."""
    module, _, name = tensor_name.rpartition(".")
    return name in SCALE_NAMES and isinstance(model.get_submodule(module), QuantizedAttention)
