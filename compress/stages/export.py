"""The export entry of a recipe: ONNX of the compressed denoiser."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.config import Config


class Onnx(Config):
    """ONNX through torch.export.

    `operators: compress` writes low-bit operators that carry their own meaning as embedded functions; `stock` writes
    operators of a stock onnxruntime, and notes what they cannot express.
    """

    operators: Literal["compress", "stock"] = Field("compress", description="Operator set of the quantized layers.")
    opset: int = Field(21, ge=21, le=25, description="ONNX opset of the standard operators.")
    fuse: bool = Field(True, description="Move bias, activation, residual and shared inputs into the operators.")


class Export(Config):
    """What is written besides the checkpoint."""

    onnx: Onnx | None = Field(None, description="Write OUT/onnx; leave out for no ONNX.")
