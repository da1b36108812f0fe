"""How the exporter writes the operators that it would write wrongly, or does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.kernels.integer_product import product_translation
from compress.kernels.onnx_ops import translation_table


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` for `torch.onnx.export`: our operators, and corrections of torch's."""
    import torch

    import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress

    return {**translation_table(), **product_translation(), torch.ops.aten.squeeze.dim: _squeeze}


def _squeeze(self, dim):  # type: ignore[no-untyped-def]
    """Torch leaves an axis that is not 1 as it is; ONNX's Squeeze, which torch's exporter writes, fails there."""
    from onnxscript import opset18 as op

    axis = dim if dim >= 0 else dim + len(self.shape)
    extent = self.shape[axis] if len(self.shape) else 1
    if isinstance(extent, int) and extent == 1:
        return op.Squeeze(self, op.Constant(value_ints=[axis]))
    return op.Identity(self)
