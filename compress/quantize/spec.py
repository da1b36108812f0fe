"""What a quantized layer is: the number formats of its weights and its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.formats import WeightSpec, get_format

__all__ = ["ActivationSpec", "LayerSpec", "WeightSpec"]


@dataclass(frozen=True)
class ActivationSpec:
    """How a layer's input is quantized.

    Dynamic: each token (each image, for a convolution) has its own scale, found when the layer runs.
    Static: one scale for the tensor, found from the trajectory, stored with the layer.
    """

    format: str
    mode: Literal["dynamic", "static"]
    symmetric: bool = True

    @property
    def operator_format(self) -> str:
        """The operator's `act_format`: asymmetric integers are unsigned codes with a zero point."""
        return self.format if self.symmetric else f"u{self.format}"

    @property
    def bits(self) -> int:
        return get_format(self.format).bits


@dataclass(frozen=True)
class LayerSpec:
    """Formats of one layer; `activations` is None for weight-only quantization.

    `mode` is the operator's: `exact`, or `folded` (`compress/kernels/folding.py`).
    """

    weights: WeightSpec
    activations: ActivationSpec | None = None
    mode: Literal["exact", "folded"] = "exact"

    def summary(self) -> str:
        """One short cell of a table: `int4 group 64 · int8 token`."""
        w = self.weights
        place = f"group {w.group}" if w.granularity == "group" else w.granularity
        text = f"{w.format} {place}" + ("" if w.symmetric else " asym") + (" folded" if self.mode == "folded" else "")
        if self.activations is None:
            return f"{text} · float"
        a = self.activations
        where = "token" if a.mode == "dynamic" else "tensor static"
        return f"{text} · {a.format} {where}" + ("" if a.symmetric else " asym")
