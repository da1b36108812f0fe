"""A quantized component on disk: config.json with its formats, packed tensors, and everything else as it was stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoint.quantization_config import to_config
from compress.checkpoint.writer import ShardWriter
from compress.errors import RunError
from compress.models.source import TensorReader
from compress.quantize.attention import AttentionSpec
from compress.quantize.cached_embeddings import TABLE, EmbeddingCache
from compress.quantize.job import QuantizedLayer, QuantizedPart
from compress.quantize.modules import layer_tensors
from compress.quantize.observers import StaticScale
from compress.quantize.spec import LayerPart, LayerSpec


def write_quantized_component(
    reader: TensorReader,
    config: Mapping[str, Any],
    specs: Mapping[str, LayerSpec],
    ignored: Iterable[str],
    layers: Iterable[QuantizedLayer],
    static_scales: Mapping[str, StaticScale],
    folder: Path,
    attention: AttentionSpec | None = None,
    attention_scales: Mapping[str, Tensor] | None = None,
    *,
    cache: EmbeddingCache | None = None,
    tables: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a component from a stream of quantized layers and the tensors that stay.

    Tensors that no layer replaced keep the type in which the source stored them: it holds their values exactly. A bias
    that a method changed takes the type of the original, in which the plan counts it.

    Args:
        static_scales: by the qualified name of a layer's part; stored where the method gives no scale of its own.
        attention: attention modules that are quantized; their scales are `attention_scales`, by full name.
        cache, tables: time embeddings that become tables, and the tables by module.

    Raises:
        RunError: the method left out a layer of `specs`, a part of one or a tensor that its spec asks for.
    """
    done: set[str] = set()
    with ShardWriter(folder) as writer:
        for layer in layers:
            bias, bias_name = layer.bias, f"{layer.name}.bias"
            if bias_name in reader.names():
                original = reader.get(bias_name)
                bias = original if bias is None else bias.to(original.dtype)
            parts = specs[layer.name].parts(reader.shape(f"{layer.name}.weight"))
            if len(layer.parts) != len(parts):
                raise RunError(f"the method returned {len(layer.parts)} of {len(parts)} parts", where=layer.name)
            for place, part in zip(parts, layer.parts, strict=True):
                name = place.of(layer.name)
                inputs = _input_tensors(name, specs[layer.name], place, part, static_scales.get(name))
                own_bias = bias if place.start == 0 else None
                for tensor_name, tensor in layer_tensors(part.weight, own_bias, inputs).items():
                    writer.add(f"{name}.{tensor_name}", tensor)
            done.add(layer.name)
        if missing := set(specs) - done:
            raise RunError("the method returned no weights", where=", ".join(sorted(missing)[:3]))
        replaced = {f"{name}.{part}" for name in done for part in ("weight", "bias")}
        for name in reader.names():
            if name not in replaced and not (cache and cache.replaces(name)):
                writer.add(name, reader.get(name))
        for name, tensor in (attention_scales or {}).items():
            writer.add(name, tensor)
        for name, table in (tables or {}).items():
            writer.add(f"{name}.{TABLE}", table)
    kept = [name for name in ignored if not (cache and cache.replaces(name))]
    full = {**config, "quantization_config": to_config(specs, kept, attention, cache)}
    (folder / "config.json").write_text(json.dumps(full, indent=2) + "\n")


def _input_tensors(
    name: str, spec: LayerSpec, place: LayerPart, part: QuantizedPart, measured: StaticScale | None
) -> dict[str, Tensor]:
    """What is stored for the input of a part: what the method gives, then what was measured.

    Raises:
        RunError: a tensor is missing, has another size, or has no place in the spec.
    """
    found = dict(part.inputs)
    if measured is not None and "input_scale" not in found:
        found["input_scale"] = measured.scale
        if measured.zero_point is not None:
            found["input_zero_point"] = measured.zero_point
    expected = _input_sizes(spec, place)
    sizes = {tensor_name: tensor.numel() for tensor_name, tensor in found.items()}
    if sizes != expected:
        raise RunError(f"the method's input tensors have {sizes} numbers, the format needs {expected}", where=name)
    return {tensor_name: tensor.float().reshape(-1) for tensor_name, tensor in found.items()}


def _input_sizes(spec: LayerSpec, place: LayerPart) -> dict[str, int]:
    """How many numbers are stored for the input of a part, by tensor."""
    sizes = {}
    if spec.activations is not None and spec.activations.mode == "static":
        count = max(1, len(spec.activations.timesteps))
        sizes = {"input_scale": count} | ({} if spec.activations.symmetric else {"input_zero_point": count})
    return sizes | ({"input_smooth": place.stop - place.start} if spec.smooth else {})
