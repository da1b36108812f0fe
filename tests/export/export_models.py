"""Tiny compressed denoisers for the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.export.onnx_export import ExportResult
from compress.formats import WeightSpec, quantize_weight
from compress.models.adapter import Adapter, DenoiserInputs, ModelSource
from compress.models.source import open_adapter, resolve
from compress.quantize.modules import swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec

SPECS = (
    LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "dynamic")),
    LayerSpec(WeightSpec("int4", "group", 8, symmetric=False), ActivationSpec("int8", "dynamic")),
    LayerSpec(WeightSpec("fp4_e2m1", "group", 8, scale_dtype="float16")),
    LayerSpec(WeightSpec("int3", "channel"), ActivationSpec("int8", "static", symmetric=False)),
    LayerSpec(WeightSpec("nf4"), ActivationSpec("int8", "dynamic"), "folded"),
    LayerSpec(WeightSpec.natural("mxfp4"), ActivationSpec("int8", "dynamic")),
    LayerSpec(WeightSpec.natural("nvfp4"), None, "folded"),
)


@dataclass(frozen=True)
class Exported:
    """A compressed model, its original, and what its export wrote."""

    adapter: Adapter
    original: nn.Module
    model: nn.Module
    result: ExportResult

    @property
    def folder(self) -> Path:
        return self.result.path.parent


def quantized(adapter: Adapter, specs: tuple[LayerSpec, ...] = SPECS) -> nn.Module:
    """The adapter's model with every layer packed, the specs dealt out in turn."""
    model: Any = adapter.load()
    chosen = {layer.name: specs[i % len(specs)] for i, layer in enumerate(adapter.layers(model))}
    layers = {name: model.get_submodule(name) for name in chosen}
    swap_layers(model, chosen, "cpu")
    for name, spec in chosen.items():
        act = {}
        if spec.activations is not None and spec.activations.mode == "static":
            act = {"input_scale": torch.tensor([0.02]), "input_zero_point": torch.tensor([110.0])}
        bias = layers[name].bias
        weight = quantize_weight(layers[name].weight, spec.weights)
        model.get_submodule(name).fill(weight, None if bias is None else bias.detach(), act)
    result: nn.Module = model.eval()
    return result


def adapter_of(folder: Path) -> Adapter:
    """The adapter of a pipeline folder."""
    return open_adapter(resolve(str(folder)))


def packed_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


class PixelAdapter:
    """Just enough of an adapter for modules that map `[b, 1, 4, 4]` and timesteps to the same shape."""

    family = "pixels"

    def __init__(self, folder: Path) -> None:
        self.source = ModelSource(str(folder), str(folder), "", "Pixels")

    def example_inputs(self, batch: int, *, device: str = "cpu", seed: int = 0) -> DenoiserInputs:
        g = torch.Generator().manual_seed(seed)
        return DenoiserInputs(torch.randn(batch, 1, 4, 4, generator=g), torch.randint(9, (batch,), generator=g), {})

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        prediction: Tensor = model(sample, timestep)
        return prediction

    def sample_shape(self) -> tuple[int, int, int]:
        return 1, 4, 4

    def class_count(self) -> None:
        return None

    def noise_schedule(self) -> Any:
        raise ModelError("has no scheduler")


class TimeTable(nn.Module):
    """Looks its shift up by whole timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        shifted: Tensor = sample + self.table(timestep)[:, :, None, None]
        return shifted


class Squeezing(nn.Module):
    """Squeezes axes that are 1 and axes that are not."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        flat = sample.squeeze(1).squeeze(-1).squeeze(2)
        return flat[:, None] * timestep[:, None, None, None]


class Folded(nn.Module):
    """A layer that cannot be folded, which shows when its ONNX function is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = FoldedLinear()

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        shifted: Tensor = self.layer(sample) + timestep[:, None, None, None]
        return shifted


class FoldedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(4, 2, 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.ones(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.compress.qmatmul(x, self.codes, self.scales, bits=8, block_size=2, mode="folded")
        return y
