"""What a quantized layer is: the number formats of its weights and its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from compress.formats import WeightSpec, get_format

__all__ = ["ActivationSpec", "LayerPart", "LayerSpec", "WeightSpec"]


@dataclass(frozen=True)
class ActivationSpec:
    """How a layer's input is quantized.

    Dynamic: each token (each image, for a convolution) has its own scale, found when the layer runs.
    Static: one scale for the tensor, found from the trajectory, stored with the layer. With `timesteps` (ascending, the
    model's own t) there is one for each of them, and the one nearest to a sample's t is used.
    """

    format: str
    mode: Literal["dynamic", "static"]
    symmetric: bool = True
    timesteps: tuple[float, ...] = ()

    @property
    def operator_format(self) -> str:
        """The operator's `act_format`: asymmetric integers are unsigned codes with a zero point."""
        return self.format if self.symmetric else f"u{self.format}"

    @property
    def bits(self) -> int:
        return get_format(self.format).bits


class LayerPart(NamedTuple):
    """One operator of a layer, which takes the input channels `start` to `stop - 1`; `name` is "" for a whole layer."""

    name: str
    start: int
    stop: int

    def of(self, layer: str) -> str:
        """Qualified name of the part of that layer: `conv_shortcut.skip`."""
        return f"{layer}.{self.name}" if self.name else layer


@dataclass(frozen=True)
class LayerSpec:
    """Formats of one layer; `activations` is None for weight-only quantization.

    `mode` is the operator's: `exact`, or `folded` (`compress/kernels/folding.py`). `split` is the input channel at
    which the layer divides into two operators, each with scales of its own. `smooth`: stored factors multiply the input
    channels before they are rounded.
    """

    weights: WeightSpec
    activations: ActivationSpec | None = None
    mode: Literal["exact", "folded"] = "exact"
    split: int | None = None
    smooth: bool = False

    def parts(self, weight_shape: tuple[int, ...]) -> tuple[LayerPart, ...]:
        """What the layer consists of: itself, or the two halves of a concatenated input, backbone first."""
        channels = weight_shape[1]
        if self.split is None:
            return (LayerPart("", 0, channels),)
        return (LayerPart("backbone", 0, self.split), LayerPart("skip", self.split, channels))

    def summary(self) -> str:
        """One short cell of a table: `int4 group 64 · int8 token`."""
        w = self.weights
        place = f"group {w.group}" if w.granularity == "group" else w.granularity
        text = f"{w.format} {place}" + ("" if w.symmetric else " asym") + (" folded" if self.mode == "folded" else "")
        tail = (" split" if self.split is not None else "") + (" smooth" if self.smooth else "")
        if self.activations is None:
            return f"{text} · float{tail}"
        a = self.activations
        where = "token" if a.mode == "dynamic" else "tensor static"
        where += f" x{len(a.timesteps)} t" if a.timesteps else ""
        return f"{text} · {a.format} {where}" + ("" if a.symmetric else " asym") + tail
