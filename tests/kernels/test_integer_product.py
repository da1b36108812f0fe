"""Products of quantized activations: exact in torch, and the very same numbers from onnxruntime's integer products."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import RunError
from compress.export.trace import quiet_exporter
from compress.export.translations import translations
from compress.kernels.integer_product import code_bounds, rounded_codes


class Product(nn.Module):
    """The operator with constant scales."""

    def __init__(self, a_scale: float, b_scale: float, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("a_scale", torch.tensor([a_scale]))
        self.register_buffer("b_scale", torch.tensor([b_scale]))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = torch.ops.compress.integer_product(a, b, self.a_scale, self.b_scale, **self.settings)
        return y


def operands(signed: bool, k: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3, 5, k, generator=generator), torch.randn(2, 3, k, 7, generator=generator)
    a = a if signed else a.softmax(-1)
    a[0, 0, 0, 0], b[0, 0, 0, 0] = 1e6, -1e6  # far outside: clipped
    return a, b


CASES = [
    (8, 8, True, 0.03),
    (4, 4, True, 0.4),
    (8, 8, False, 1 / 255),
    (8, 4, False, 1 / 255),
    (16, 8, False, 1 / 65535),
]


@pytest.mark.parametrize(("a_bits", "b_bits", "signed", "scale"), CASES)
def test_sums_of_codes_are_exact(a_bits: int, b_bits: int, signed: bool, scale: float) -> None:
    a, b = operands(signed, k=3000)
    y = Product(scale, 0.02, a_bits=a_bits, b_bits=b_bits, a_signed=signed)(a, b)
    low, high = code_bounds(a_bits, signed)
    codes_a = torch.round(a / torch.tensor(scale)).clamp(low, high).long()
    codes_b = torch.round(b / torch.tensor(0.02)).clamp(-(2 ** (b_bits - 1)), 2 ** (b_bits - 1) - 1).long()
    sums = torch.einsum("zhmk,zhkn->zhmn", codes_a, codes_b)
    assert torch.equal(y, sums.float() * (torch.tensor(scale) * torch.tensor(0.02)))
    assert sums.abs().max() > 2**10


@pytest.mark.parametrize(("a_bits", "b_bits", "signed", "scale"), CASES)
def test_onnxruntime_gives_the_same_numbers(
    a_bits: int, b_bits: int, signed: bool, scale: float, tmp_path: Path
) -> None:
    a, b = operands(signed)
    model = Product(scale, 0.02, a_bits=a_bits, b_bits=b_bits, a_signed=signed)
    with quiet_exporter():
        program = torch.onnx.export(
            model, (a, b), dynamo=True, opset_version=21, custom_translation_table=translations(), verbose=False
        )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), (a, b), strict=True)}
    (y,) = session.run(None, feeds)
    assert np.array_equal(y, model(a, b).numpy())
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    integer = a_bits <= 8
    assert nodes["MatMulIntegerToFloat"] == integer
    assert nodes["MatMul"] + nodes["FusedMatMul"] == (not integer)


def test_codes_round_half_to_even_and_clip() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, -2.5, 900.0, -900.0])
    assert rounded_codes(x, torch.ones(1), 8, True).tolist() == [0, 2, 0, -2, 127, -128]
    assert rounded_codes(x, torch.ones(1), 4, True).tolist() == [0, 2, 0, -2, 7, -8]
    assert rounded_codes(x, torch.ones(1), 16, False).tolist() == [0, 2, 0, 0, 900, 0]


def test_half_precision_is_multiplied_in_float32() -> None:
    a, b = operands(True)
    model = Product(0.03, 0.02, a_bits=8, b_bits=8, a_signed=True)
    y = model(a.half(), b.half())
    assert y.dtype == torch.float32 and torch.equal(y, model(a.half().float(), b.half().float()))
    assert model.to("meta")(a.to("meta"), b.to("meta")).shape == y.shape


def test_there_is_no_gradient() -> None:
    a, b = operands(True)
    with pytest.raises(RunError, match="no gradient"):
        Product(0.03, 0.02, a_bits=8, b_bits=8, a_signed=True)(a.requires_grad_(), b).sum().backward()
