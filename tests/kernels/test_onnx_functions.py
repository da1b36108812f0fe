"""The functions embedded in exported files, run by a stock onnxruntime, against the torch reference."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from kernel_cases import CASES, CONV_CASES, Case, build, build_conv
from torch import Tensor

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from compress.errors import ExportError
from compress.formats import WeightSpec
from compress.kernels import reference
from compress.kernels.onnx_functions import OPSETS, function_for
from compress.kernels.onnx_single import facts, single_node_model
from compress.kernels.onnx_variants import TensorFacts, variant_of
from compress.kernels.schema import DOMAIN, QCONV2D, QMATMUL, Operator

LIMIT = 1e-5


def run(model: Any, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def relative_error(operator: Operator, x: Tensor, arguments: dict[str, Any], opset: int = 21) -> float:
    """||onnx - reference|| / ||reference|| of one call; checks type, shape and the file on the way."""
    tensors = {i.name: arguments[i.name] for i in operator.inputs if isinstance(arguments.get(i.name), Tensor)}
    attributes = {a.name: arguments[a.name] for a in operator.attributes if a.name in arguments}
    expected = getattr(reference, operator.name)(x, **arguments)
    model = single_node_model(operator, {"x": x, **tensors}, attributes, opset)
    onnx.checker.check_model(model, full_check=True)
    y = run(model, x)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    return float((y.float() - expected.float()).norm() / expected.float().norm())


EXACT = [case for case in CASES if "mode" not in case.attributes]


@pytest.mark.parametrize("k", [1, 33, 401])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matmul_matches_the_reference(case: Case, k: int) -> None:
    x, arguments = build(case, k=k)
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_convolution_matches_the_reference(case: Case) -> None:
    x, arguments = build_conv(case)
    assert relative_error(QCONV2D, x, arguments) <= LIMIT


WEIGHTS = [
    WeightSpec(fmt, granularity, group, symmetric, scale_dtype)
    for fmt in ("int8", "int6", "int4", "int3", "int2", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "nf4")
    for granularity, group in (("tensor", None), ("channel", None), ("group", 32), ("group", 7))
    for symmetric, scale_dtype in ((True, "float32"), (fmt[0] != "i", "float16"))
]
WEIGHTS += [WeightSpec.natural("mxfp4"), WeightSpec.natural("nvfp4")]
FOLDABLE = [spec for spec in WEIGHTS if spec.number_format.bits <= 6]


@pytest.mark.parametrize("act_format", ["none", "int8"])
@pytest.mark.parametrize("spec", WEIGHTS, ids=str)
def test_every_weight_format(spec: WeightSpec, act_format: str) -> None:
    case = Case("weights", spec, {"act_format": act_format}, ("bias",))
    x, arguments = build(case, rows=5, k=45)
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


@pytest.mark.parametrize("spec", FOLDABLE, ids=str)
def test_every_foldable_weight_format(spec: WeightSpec) -> None:
    """Block scales from one another by up to a factor of 16, so that some blocks fold and some do not."""
    x, arguments = build(Case("folded", spec, {"mode": "folded"}, ("bias",)), rows=5, k=45)
    if spec.granularity == "group" and arguments["scales"].is_floating_point():
        spread = torch.logspace(0, -4, arguments["scales"].shape[1], base=2.0)
        arguments["scales"] = (arguments["scales"].float() * spread).to(arguments["scales"].dtype)
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


@pytest.mark.parametrize("spec", WEIGHTS[::3], ids=str)
def test_every_weight_format_in_convolutions(spec: WeightSpec) -> None:
    for act_format in ("none", "int8"):
        x, arguments = build_conv(Case("weights", spec, {"act_format": act_format}, ("bias",)))
        assert relative_error(QCONV2D, x, arguments) <= LIMIT


INTEGERS = ["int8", "int6", "int4", "int2", "uint8", "uint4"]
ACTIVATIONS = [
    (fmt, inputs)
    for fmt in (*INTEGERS, "fp8_e4m3", "fp8_e5m2", "fp4_e2m1")
    for inputs in ((), ("act_scale",), ("act_scale", "act_zero_point"))
    if fmt in INTEGERS or len(inputs) < 2  # float formats have no zero points
]


@pytest.mark.parametrize("weight", ["int8", "fp4_e2m1"])
@pytest.mark.parametrize(("act_format", "inputs"), ACTIVATIONS)
def test_every_activation_format(act_format: str, inputs: tuple[str, ...], weight: str) -> None:
    """Static scales are so small that many values saturate."""
    x, arguments = build(Case("acts", WeightSpec(weight), {"act_format": act_format}, inputs))
    if "act_zero_point" in inputs:
        arguments["act_zero_point"] = torch.tensor(3.0 if act_format[0] == "u" else 1.0)
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


def test_ties_round_as_in_torch() -> None:
    """Every value lies on the middle between two codes, or on a code."""
    for act_format, largest in (("int8", 127.0), ("fp4_e2m1", 6.0), ("fp8_e4m3", 448.0)):
        x = torch.arange(-2 * largest, 2 * largest + 1)[None] / 2
        if act_format == "fp4_e2m1":
            x = torch.arange(-24, 25)[None] / 4
        _, arguments = build(Case("ties", WeightSpec("int8"), {"act_format": act_format}), k=x.shape[1])
        assert relative_error(QMATMUL, x, arguments) <= 1e-6


@pytest.mark.parametrize("case", [EXACT[0], EXACT[7]], ids=lambda case: case.name)
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (2, 3)], ids=str)
def test_any_number_of_row_axes(case: Case, shape: tuple[int, ...]) -> None:
    x, arguments = build(case)
    x = x[: torch.Size(shape).numel()].reshape(*shape, x.shape[-1])
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


def test_rows_of_zeros_stay_finite() -> None:
    x, arguments = build(Case("w8a8", WeightSpec("int8"), {"act_format": "int8"}, ("bias",)))
    x[3] = 0
    assert relative_error(QMATMUL, x, arguments) <= LIMIT


@pytest.mark.parametrize("weight", ["int8", "int4"])
def test_half_precision_activations(weight: str) -> None:
    x, arguments = build(Case("half", WeightSpec(weight, scale_dtype="float16"), {"act_format": "int8"}, ("bias",)))
    arguments["bias"] = arguments["bias"].half()
    assert relative_error(QMATMUL, x.half(), arguments) <= 1e-3  # y itself is rounded to float16


@pytest.mark.parametrize("opset", range(OPSETS[0], OPSETS[1] + 1))
def test_every_opset(opset: int) -> None:
    for case in (EXACT[0], EXACT[4], EXACT[7], EXACT[-1]):
        x, arguments = build(case)
        assert relative_error(QMATMUL, x, arguments, opset) <= LIMIT
    x, arguments = build_conv(CONV_CASES[1])
    assert relative_error(QCONV2D, x, arguments, opset) <= LIMIT


def call(shape: tuple[int | None, ...] = (None, 64), **attributes: Any) -> Any:
    """A variant of an int4 layer of 64 inputs."""
    full = {"bits": 4, "block_size": 32, "act_format": "none", "act_group": 0, "mode": "exact", "activation": "none"}
    inputs = {
        "x": TensorFacts("float32", shape),
        "codes": TensorFacts("uint8", (8, 2, 16)),
        "scales": TensorFacts("float32", (8, 2)),
    }
    return variant_of(QMATMUL, full | attributes, inputs)


def test_bodies_are_standard_and_equal_for_equal_configurations() -> None:
    first, second = function_for(call(), 21), function_for(call(), 21)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert (first.domain, first.name, first.overload) == (DOMAIN, "QMatMul", call().overload)
    assert {node.domain for node in first.node} == {""}
    assert call().overload != call(act_format="int8").overload != call(act_format="int4").overload


def test_names_tell_variants_apart() -> None:
    """Calls that need different bodies have different names; equal calls have equal functions."""
    bodies: dict[str, bytes] = {}
    for operator, built in ((QMATMUL, map(build, CASES)), (QCONV2D, map(build_conv, CONV_CASES))):
        for x, arguments in built:
            attributes = {a.name: arguments.get(a.name, a.default) for a in operator.attributes}
            given = {i.name: arguments.get(i.name) for i in operator.inputs} | {"x": x}
            tensors = {name: facts(t, name) for name, t in given.items() if t is not None}
            variant = variant_of(operator, attributes, tensors)
            body = function_for(variant, 21).SerializeToString(deterministic=True)
            assert bodies.setdefault(variant.overload, body) == body
    assert len(set(bodies.values())) == len(bodies) > len(CASES)


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ExportError, match="8 bits cannot be folded"):
        call(mode="folded", bits=8)
    x, arguments = build(next(case for case in CASES if case.name == "folded_nf4"))
    attributes = {a.name: arguments.get(a.name, a.default) for a in QMATMUL.attributes}
    tensors = {name: facts(arguments[name]) for name in ("codes", "scales", "table")} | {"x": facts(x)}
    with pytest.raises(ExportError, match="is not constant"):
        variant_of(QMATMUL, attributes, tensors)


def test_a_single_row_without_row_axis_is_refused() -> None:
    with pytest.raises(ExportError, match="one axis"):
        call(shape=(64,))


def test_opsets_out_of_range_are_refused() -> None:
    with pytest.raises(ExportError, match="20"):
        function_for(call(), 20)
