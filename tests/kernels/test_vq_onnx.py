"""The embedded functions of vector-quantized operators: stock onnxruntime against the torch reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from test_onnx_folding import optimized_bytes
from test_onnx_functions import run
from torch import Tensor
from vq_cases import VQ_CASES, VQ_CONV_CASES, VqCase, build_vq, build_vq_conv, weight_arguments

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from compress.formats.vq import VqSpec, vq_predicted_bytes
from compress.kernels import vq_reference
from compress.kernels.onnx_functions import OPSETS, function_for
from compress.kernels.onnx_single import facts, single_node_model
from compress.kernels.onnx_variants import variant_of
from compress.kernels.schema import VQCONV2D, VQMATMUL, Operator

LIMIT = 1e-5


def relative_error(operator: Operator, x: Tensor, arguments: dict[str, Any], opset: int = 21) -> float:
    """||onnx - reference|| / ||reference|| of one call; checks type, shape and the file on the way."""
    tensors = {i.name: arguments[i.name] for i in operator.inputs if isinstance(arguments.get(i.name), Tensor)}
    attributes = {a.name: arguments[a.name] for a in operator.attributes if a.name in arguments}
    expected = getattr(vq_reference, operator.name)(x, **arguments)
    model = single_node_model(operator, {"x": x, **tensors}, attributes, opset)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.functions[0].node} == {""}
    y = run(model, x)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    return float((y.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("k", [1, 33, 100])
@pytest.mark.parametrize("case", VQ_CASES, ids=lambda case: case.name)
def test_matmul_matches_the_reference(case: VqCase, k: int) -> None:
    x, arguments = build_vq(case, k=k)
    assert relative_error(VQMATMUL, x, arguments) <= LIMIT


@pytest.mark.parametrize("case", VQ_CONV_CASES, ids=lambda case: case.name)
def test_convolution_matches_the_reference(case: VqCase) -> None:
    x, arguments = build_vq_conv(case)
    assert relative_error(VQCONV2D, x, arguments) <= LIMIT


@pytest.mark.parametrize("mode", ["exact", "folded"])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_of_bits(bits: int, d: int, mode: str) -> None:
    x, arguments = build_vq(VqCase("bits", VqSpec(bits, d, "float32"), {"mode": mode}, ("bias",)), rows=5, k=45)
    assert relative_error(VQMATMUL, x, arguments) <= LIMIT


def test_rounding_of_the_codebook_at_ties_and_zeros() -> None:
    x, arguments = build_vq(VqCase("ties", VqSpec(4, 4, "float32"), {"mode": "folded"}))
    arguments["codebook"] = (torch.arange(64.0).reshape(16, 4) - 31) * 2 + 1
    arguments["codebook"][0, 0] = 254.0  # unit 2: every other entry lies between two whole numbers
    assert relative_error(VQMATMUL, x, arguments) <= 1e-6
    arguments["codebook"].zero_()
    arguments["bias"] = torch.ones(37)
    assert relative_error(VQMATMUL, x, arguments) == 0


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 3)], ids=str)
def test_any_number_of_row_axes(shape: tuple[int, ...]) -> None:
    x, arguments = build_vq(VQ_CASES[2])
    x = x[: torch.Size(shape).numel()].reshape(*shape, x.shape[-1])
    assert relative_error(VQMATMUL, x, arguments) <= LIMIT


def test_half_precision() -> None:
    x, arguments = build_vq(VqCase("half", VqSpec(6, 2, scale_dtype="float16"), {"act_format": "int8"}, ("bias",)))
    arguments["bias"] = arguments["bias"].half()
    assert relative_error(VQMATMUL, x.half(), arguments) <= 1e-3  # y itself is rounded to float16


@pytest.mark.parametrize("opset", range(OPSETS[0], OPSETS[1] + 1))
def test_every_opset(opset: int) -> None:
    for case in (VQ_CASES[0], VQ_CASES[3], VQ_CASES[-1]):
        x, arguments = build_vq(case)
        assert relative_error(VQMATMUL, x, arguments, opset) <= LIMIT


def test_overloads_tell_variants_apart() -> None:
    """Calls that need different bodies have different names; equal calls have equal functions."""
    bodies: dict[str, bytes] = {}
    for k in (100, 101):
        for case in VQ_CASES:
            x, arguments = build_vq(case, k=k)
            attributes = {a.name: arguments.get(a.name, a.default) for a in VQMATMUL.attributes}
            tensors = {i.name: arguments[i.name] for i in VQMATMUL.inputs if i.name in arguments}
            present = {name: facts(tensor) for name, tensor in {"x": x, **tensors}.items()}
            variant = variant_of(VQMATMUL, attributes, present)
            body = function_for(variant, 21).SerializeToString(deterministic=True)
            assert bodies.setdefault(variant.overload, body) == body
    assert len(set(bodies.values())) == len(bodies) >= len(VQ_CASES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("act_format", ["none", "int8"])
@pytest.mark.parametrize("mode", ["exact", "folded"])
@pytest.mark.parametrize("shape", [(256, 512), (128, 64, 3, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("spec", [VqSpec(8, 4), VqSpec(6, 2), VqSpec(4, 3), VqSpec(8, 8, "int8")], ids=str)
def test_packed_weights_stay_packed(
    spec: VqSpec, shape: tuple[int, ...], mode: str, act_format: str, tmp_path: Path
) -> None:
    length = torch.Size(shape[1:]).numel()
    named = weight_arguments(spec, shape[0], length)
    x = torch.randn(2, shape[1], *([4, 4] if len(shape) == 4 else []), generator=torch.Generator().manual_seed(0))
    tensors = {"x": x, **{name: value for name, value in named.items() if isinstance(value, Tensor)}}
    attributes = {"bits": spec.bits, "d": spec.d, "mode": mode, "act_format": act_format}
    if len(shape) == 4:
        attributes["kernel"] = (3, 3)
    model = single_node_model(VQCONV2D if len(shape) == 4 else VQMATMUL, tensors, attributes, 21)
    used = optimized_bytes(model, tmp_path)
    codebook = 4 * spec.codewords * spec.d  # in float32, which the session makes of it
    packed = vq_predicted_bytes(shape, spec).codes
    assert used <= packed + codebook + 2000
    assert packed + codebook + 2000 < torch.Size(shape).numel()  # the test can tell packed from int8


def test_the_session_runs_standard_operators_only() -> None:
    x, arguments = build_vq(VQ_CASES[0])
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    model = single_node_model(VQMATMUL, {"x": x, **tensors}, {"bits": 8, "d": 4}, 21)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x[:1].numpy()})[0].shape == (1, 37)
