"""A quantized component on disk: config.json with its formats, packed tensors, and everything else as it was stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.quantization_config import to_config
from compress.checkpoint.writer import ShardWriter
from compress.errors import RunError
from compress.models.source import TensorReader
from compress.quantize.job import QuantizedLayer
from compress.quantize.modules import layer_tensors
from compress.quantize.observers import StaticScale
from compress.quantize.spec import LayerSpec


def write_quantized_component(
    reader: TensorReader,
    config: Mapping[str, Any],
    specs: Mapping[str, LayerSpec],
    ignored: Iterable[str],
    layers: Iterable[QuantizedLayer],
    static_scales: Mapping[str, StaticScale],
    folder: Path,
) -> None:
    """Write a component from a stream of quantized layers and the tensors that stay.

    Tensors that no layer replaced keep the type in which the source stored them: it holds their values exactly.

    Raises:
        RunError: the method left out a layer of `specs`.
    """
    done: set[str] = set()
    with ShardWriter(folder) as writer:
        for layer in layers:
            bias_name = f"{layer.name}.bias"
            bias = layer.bias if layer.bias is not None or bias_name not in reader.names() else reader.get(bias_name)
            scales = _static_tensors(static_scales.get(layer.name))
            for name, tensor in layer_tensors(layer.weight, bias, scales).items():
                writer.add(f"{layer.name}.{name}", tensor)
            done.add(layer.name)
        if missing := set(specs) - done:
            raise RunError("the method returned no weights", where=", ".join(sorted(missing)[:3]))
        replaced = {f"{name}.{part}" for name in done for part in ("weight", "bias")}
        for name in reader.names():
            if name not in replaced:
                writer.add(name, reader.get(name))
    full = {**config, "quantization_config": to_config(specs, list(ignored))}
    (folder / "config.json").write_text(json.dumps(full, indent=2) + "\n")


def _static_tensors(scale: StaticScale | None) -> dict[str, Any]:
    if scale is None:
        return {}
    tensors = {"input_scale": scale.scale}
    return tensors if scale.zero_point is None else {**tensors, "input_zero_point": scale.zero_point}
