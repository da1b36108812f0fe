"""Our operators inside onnxruntime, by the library's RegisterCustomOps: against the reference and the functions."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cpu_kernels import needs_kernels
from kernel_cases import CASES, CONV_CASES, Case, build, build_conv
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from vq_cases import VQ_CASES, VQ_CONV_CASES, build_vq, build_vq_conv

from compress.errors import ExportError
from compress.formats import WeightSpec
from compress.kernels import cpu_library, reference, vq_reference
from compress.kernels.onnx_single import single_node_model
from compress.kernels.schema import DOMAIN, QCONV2D, QMATMUL, VQCONV2D, VQMATMUL, Operator

pytestmark = needs_kernels
LIMIT = 1e-5
Arguments = dict[str, Any]


def calls(rows: int = 33, k: int = 100) -> dict[str, tuple[Operator, Tensor, Arguments]]:
    """Every case of every operator by name."""
    found: dict[str, tuple[Operator, Tensor, Arguments]] = {}
    for case in CASES:
        found[case.name] = (QMATMUL, *build(case, rows=rows, k=k))
    for conv in CONV_CASES:
        found[conv.name] = (QCONV2D, *build_conv(conv))
    for vq in VQ_CASES:
        found[f"vq {vq.name}"] = (VQMATMUL, *build_vq(vq, rows=rows, k=k))
    for vq in VQ_CONV_CASES:
        found[f"vq {vq.name}"] = (VQCONV2D, *build_vq_conv(vq))
    return found


CALLS = calls()
by_call = pytest.mark.parametrize("name", CALLS)


def initializer(tensor: Tensor, name: str) -> TensorProto:
    if tensor.dtype == torch.float8_e4m3fn:
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, tensor.shape, raw, raw=True)
    return numpy_helper.from_array(tensor.numpy(), name)


def node_model(operator: Operator, x: Tensor, arguments: Arguments) -> onnx.ModelProto:
    """A model of one node without any function: only our library can run it."""
    tensors = {i.name: arguments[i.name] for i in operator.inputs if isinstance(arguments.get(i.name), Tensor)}
    given = {a.name: arguments[a.name] for a in operator.attributes if a.name in arguments}
    names = ["x", *(i.name if i.name in tensors else "" for i in operator.inputs[1:])]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator.onnx_name, names, ["y"], domain=DOMAIN, name="blocks.0/attn", **given)
    kind = helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, ["first", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", kind, [None] * x.dim())],
        [initializer(tensor, name) for name, tensor in tensors.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def session(model: onnx.ModelProto, threads: int = 1, library: bool = True, **entries: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("compress.threads", str(threads))
    for key, value in entries.items():
        options.add_session_config_entry(f"compress.{key}", value)
    if library:
        options.register_custom_ops_library(str(cpu_library.PATH))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(opened: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(opened.run(None, {"x": x.numpy()})[0])


def expected(operator: Operator, x: Tensor, arguments: Arguments) -> Tensor:
    source = vq_reference if operator in (VQMATMUL, VQCONV2D) else reference
    y: Tensor = getattr(source, operator.name)(x, **arguments)
    return y


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@by_call
def test_kernels_match_the_reference(name: str) -> None:
    operator, x, arguments = CALLS[name]
    assert error(run(session(node_model(*CALLS[name]), 2), x), expected(operator, x, arguments)) <= LIMIT


@by_call
def test_floating_point_route_matches_the_reference(name: str) -> None:
    """What computes the calls that integer kernels refuse, made to compute every call."""
    operator, x, arguments = CALLS[name]
    opened = session(node_model(*CALLS[name]), 2, float="1")
    assert error(run(opened, x), expected(operator, x, arguments)) <= LIMIT


@pytest.mark.parametrize(("rows", "k"), [(1, 33), (7, 1), (500, 401), (2, 1030)])
def test_odd_sizes(rows: int, k: int) -> None:
    for name, (operator, x, arguments) in calls(rows, k).items():
        if operator in (QMATMUL, VQMATMUL):
            found = run(session(node_model(operator, x, arguments)), x)
            assert error(found, expected(operator, x, arguments)) <= LIMIT, name


def test_folding_above_six_bits() -> None:
    """Tables are rounded, which no kernel does; runs of integers are refused, as by the reference."""
    folded = {"act_format": "int8", "mode": "folded"}
    x, arguments = build(Case("fp8", WeightSpec("fp8_e4m3"), folded))
    assert error(run(session(node_model(QMATMUL, x, arguments)), x), expected(QMATMUL, x, arguments)) <= LIMIT
    x, arguments = build(Case("int8", WeightSpec("int8", "group", 32), folded))
    with pytest.raises(Exception, match="cannot be folded"):
        session(node_model(QMATMUL, x, arguments))


@by_call
def test_one_file_with_and_without_the_library(name: str) -> None:
    operator, x, arguments = CALLS[name]
    tensors = {i.name: arguments[i.name] for i in operator.inputs if isinstance(arguments.get(i.name), Tensor)}
    attributes = {a.name: arguments[a.name] for a in operator.attributes if a.name in arguments}
    try:
        model = single_node_model(operator, {"x": x, **tensors}, attributes, 21)
    except ExportError as refusal:
        assert "folded" in str(refusal)
        return
    stock, registered = run(session(model, library=False), x), run(session(model), x)
    assert error(registered, stock) <= LIMIT


@pytest.mark.parametrize("name", ["w8a8", "w4g32_a8", "w4a4_groups", "fp8", "conv_smooth", "conv_fp4", "vq low_rank"])
def test_threads_change_no_bit(name: str) -> None:
    operator, x, arguments = calls(rows=300)[name]
    one, *others = (run(session(node_model(operator, x, arguments), threads), x) for threads in (1, 2, 3, 4))
    assert all(torch.equal(one, y) for y in others)


@pytest.mark.parametrize("name", ["w4g32_a8", "conv_static", "vq everything"])
def test_weights_that_are_no_constants(name: str) -> None:
    """Read, and checked, in every call."""
    operator, x, arguments = CALLS[name]
    model = node_model(operator, x, arguments)
    feeds = {"x": x.numpy()}
    for tensor in model.graph.initializer:
        feeds[tensor.name] = numpy_helper.to_array(tensor)
        shape = [f"{tensor.name}{axis}" for axis in range(len(tensor.dims))]
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    del model.graph.initializer[:]
    opened = session(model)
    assert error(torch.from_numpy(opened.run(None, feeds)[0]), expected(operator, x, arguments)) <= LIMIT
    feeds["codes"] = feeds["codes"][..., :-1].copy()
    with pytest.raises(Exception, match=r"codes .* does not fit"):
        opened.run(None, feeds)


@pytest.mark.parametrize("weight", ["int8", "int4"])
@pytest.mark.parametrize("act_format", ["int8", "none"])
def test_half_precision(weight: str, act_format: str) -> None:
    spec = WeightSpec(weight, "group", 32, scale_dtype="float16")
    inputs = ("bias", "smooth", "low_rank_a", "low_rank_b")
    x, arguments = build(Case("half", spec, {"act_format": act_format}, inputs))
    for name in ("bias", "low_rank_a", "low_rank_b"):
        arguments[name] = arguments[name].half()
    arguments["residual"] = torch.randn(33, 37, generator=torch.Generator().manual_seed(1)).half()
    wanted = expected(QMATMUL, x.half(), arguments)
    found = run(session(node_model(QMATMUL, x.half(), arguments), 2), x.half())
    assert error(found, wanted) <= 1e-4  # a sum on the middle between two float16 numbers may fall to either
    assert (found != wanted).float().mean() < 0.01


def test_every_half_precision_number_survives() -> None:
    """x times the identity: both conversions of all float16 numbers."""
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)[:, None]
    codes, scales = torch.full((1, 1, 1), 129, dtype=torch.uint8), torch.ones(1, 1)
    y = run(session(node_model(QMATMUL, x, {"codes": codes, "scales": scales, "bits": 8, "block_size": 1})), x)
    finite = x.isfinite()
    assert torch.equal(y[finite], x[finite])
    assert torch.equal(y.isnan(), x.isnan()) and torch.equal(y.isinf(), x.isinf())


@pytest.mark.parametrize("shape", [(100,), (2, 3, 100), (0, 100), (2, 0, 100), (1, 1, 1, 100)], ids=str)
def test_any_number_of_row_axes(shape: tuple[int, ...]) -> None:
    for name in ("w8a8", "w4g32"):
        _, _, arguments = CALLS[name]
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        y = run(session(node_model(QMATMUL, x, arguments)), x)
        wanted = expected(QMATMUL, x, arguments)
        assert y.shape == wanted.shape and torch.allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_static_scales_broadcast_along_any_axis() -> None:
    _, arguments = build(Case("static", WeightSpec("int8"), {"act_format": "int8"}))
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, 100, generator=g)
    for shape in ((), (1,), (3, 1), (2, 1, 1), (2, 3, 1), (1, 3, 1)):
        given = {**arguments, "act_scale": torch.rand(shape, generator=g) * 0.02 + 0.01}
        found = run(session(node_model(QMATMUL, x, given)), x)
        assert error(found, expected(QMATMUL, x, given)) <= LIMIT, shape


def test_two_sessions_at_once() -> None:
    names = ("w4g32_a8", "conv_w8a8")
    wanted = {name: expected(*CALLS[name]) for name in names}
    opened = {name: session(node_model(*CALLS[name]), 2) for name in names}
    errors: list[float] = []

    def work(name: str) -> None:
        for _ in range(30):
            errors.append(error(run(opened[name], CALLS[name][1]), wanted[name]))

    workers = [threading.Thread(target=work, args=(name,)) for name in names for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(errors) == 120 and max(errors) <= LIMIT


def without(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        kept = [a for a in model.graph.node[0].attribute if a.name != name]
        del model.graph.node[0].attribute[:]
        model.graph.node[0].attribute.extend(kept)

    return change


def attribute(name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        without(name)(model)
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))

    return change


def tensor(name: str, value: np.ndarray[Any, Any]) -> Callable[[onnx.ModelProto], None]:
    """Gives the input of that name, wherever it belongs."""

    def change(model: onnx.ModelProto) -> None:
        kept = [t for t in model.graph.initializer if t.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])
        position = [i.name for i in QMATMUL.inputs].index(name)
        names = list(model.graph.node[0].input)
        names += [""] * (position + 1 - len(names))
        names[position] = name
        del model.graph.node[0].input[:]
        model.graph.node[0].input.extend(names)

    return change


F32, U8 = np.float32, np.uint8
MALFORMED = [
    (attribute("bits", 0), "bits=0"),
    (attribute("bits", 9), "bits=9"),
    (attribute("bits", 3), "codes .*does not fit"),
    (attribute("bits", "4"), "bits must be given as an integer"),
    (without("bits"), "bits must be given"),
    (without("block_size"), "block_size must be given"),
    (attribute("block_size", 0), "block_size=0"),
    (attribute("block_size", -(2**63)), "block_size=-9"),
    (attribute("block_size", 2**62), "out of range"),
    (attribute("block_size", 64), "codes .*does not fit"),
    (attribute("act_format", "int7"), "'int7' is not known"),
    (attribute("act_format", "nf4"), "'nf4' is not known"),
    (attribute("act_format", 8), "act_format must be given as a string"),
    (attribute("act_format", "x" * 10000), "10001 characters"),
    (attribute("act_group", -1), "act_group=-1"),
    (attribute("mode", "fast"), "mode 'fast'"),
    (attribute("activation", "relu"), "activation 'relu'"),
    (attribute("activation", 1), "activation must be given as a string"),
    (tensor("codes", np.zeros((37, 4, 15), U8)), "codes .*does not fit"),
    (tensor("codes", np.zeros((37, 3, 16), U8)), "codes .*does not fit"),
    (tensor("codes", np.zeros((0, 4, 16), U8)), "empty"),
    (tensor("codes", np.zeros((37, 64), U8)), "codes .*does not fit"),
    (tensor("codes", np.zeros((37, 4, 16), F32)), "codes"),
    (tensor("scales", np.ones((36, 4), F32)), "scales .*broadcast"),
    (tensor("scales", np.ones((37, 3), F32)), "scales .*broadcast"),
    (tensor("scales", np.ones((37 * 4,), F32)), "scales .*broadcast"),
    (tensor("scales", np.ones((0, 4), F32)), "scales .*broadcast"),
    (tensor("scales", np.ones((37, 4), np.float64)), "ONNX type 11"),
    (tensor("zero_points", np.zeros((36, 4), U8)), "zero_points .*broadcast"),
    (tensor("zero_points", np.full((37, 4), 16, U8)), "zero point is not below 16"),
    (tensor("table", np.zeros(15, F32)), r"table \[15\]"),
    (tensor("table", np.zeros((4, 4), F32)), "table"),
    (tensor("bias", np.zeros(36, F32)), "bias"),
    (tensor("bias", np.zeros(37, np.int32)), "bias has ONNX type 6"),
    (tensor("smooth", np.ones(99, F32)), "smooth"),
    (tensor("act_scale", np.ones(37, F32)), "act_scale"),
    (tensor("act_zero_point", np.ones(1, F32)), "act_zero_point without act_scale"),
    (tensor("low_rank_a", np.ones((100, 4), F32)), "go together"),
    (tensor("global_scale", np.ones(2, F32)), "global_scale"),
    (tensor("global_scale", np.ones(0, F32)), "global_scale"),
    (tensor("residual", np.ones((33, 36), F32)), "residual"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_malformed_models_are_refused_when_they_are_opened(
    change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = node_model(*CALLS["w4g32_a8"])
    change(model)
    with pytest.raises(Exception, match=message) as refusal:
        session(model)
    assert "QMatMul" in str(refusal.value) and "blocks.0/attn" in str(refusal.value)


MALFORMED_CONVOLUTIONS = [
    (without("kernel"), "kernel must be given"),
    (attribute("kernel", [3]), "kernel has 1 values"),
    (attribute("kernel", [3, 3]), "codes .*does not fit"),
    (attribute("kernel", [0, 3]), "kernel holds 0"),
    (attribute("stride", [0, 1]), "stride holds 0"),
    (attribute("padding", [-1, 0]), "padding holds -1"),
    (attribute("padding", [2**40, 0]), "out of range"),
    (attribute("dilation", [100, 1]), "smaller than a kernel"),
    (attribute("dilation", 1.5), "dilation"),
    (attribute("groups", 0), "groups=0"),
    (attribute("groups", 4), "4 groups"),
    (attribute("act_group", 8), "act_group=8"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED_CONVOLUTIONS, ids=[m for _, m in MALFORMED_CONVOLUTIONS])
def test_malformed_convolutions_are_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = node_model(*CALLS["conv_w8a8"])
    change(model)
    with pytest.raises(Exception, match=message):
        session(model)


def test_positions_under_a_kernel_that_cannot_be_counted() -> None:
    model = node_model(*CALLS["conv_w8a8"])
    attribute("kernel", [4096, 4096])(model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40
    with pytest.raises(Exception, match="than can be counted"):
        session(model)


@pytest.mark.parametrize("zero_point", [0.5, 200.0])
def test_activation_zero_points_that_are_no_codes_are_computed_in_float(zero_point: float) -> None:
    operator, x, arguments = CALLS["w8a8"]
    arguments = {**arguments, "act_scale": torch.tensor([0.02]), "act_zero_point": torch.tensor([zero_point])}
    found = run(session(node_model(operator, x, arguments), 2), x)
    assert error(found, expected(operator, x, arguments)) <= LIMIT


@pytest.mark.parametrize("name", ["folded_asymmetric", "folded_fp4"])
@pytest.mark.parametrize("in_float", ["0", "1"])
def test_channels_of_zeros_fold_to_zeros(name: str, in_float: str) -> None:
    operator, x, arguments = CALLS[name]
    scales = arguments["scales"].float().clone()
    scales[:2] = 0.0
    arguments = {**arguments, "scales": scales}
    found = run(session(node_model(operator, x, arguments), float=in_float), x)
    assert error(found, expected(operator, x, arguments)) <= LIMIT
    tensors = {i.name: arguments[i.name] for i in operator.inputs if isinstance(arguments.get(i.name), Tensor)}
    attributes = {a.name: arguments[a.name] for a in operator.attributes if a.name in arguments}
    model = single_node_model(operator, {"x": x, **tensors}, attributes, 21)
    by_functions = run(session(model, library=False), x)
    assert error(by_functions, expected(operator, x, arguments)) <= LIMIT


def test_inputs_that_no_static_shape_gives_away_are_refused_in_the_call() -> None:
    operator, x, arguments = CALLS["w4g32_a8"]
    model = node_model(operator, x, arguments)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    opened = session(model)
    assert error(run(opened, x), expected(operator, x, arguments)) <= LIMIT
    for wrong in (x[:, :64], torch.zeros(33, 0), torch.tensor(1.0), torch.zeros(*[1] * 9, 100)):
        with pytest.raises(Exception, match=r"QMatMul 'blocks.0/attn'"):
            run(opened, wrong)
    assert error(run(opened, x), expected(operator, x, arguments)) <= LIMIT


def test_absurd_codebooks_are_refused() -> None:
    for change, message in (
        (attribute("d", 0), "d=0"),
        (attribute("d", 2**62), "out of range"),
        (attribute("d", 3), "codebook .*does not fit"),
        (attribute("bits", 7), "codebook .*does not fit"),
    ):
        model = node_model(*CALLS["vq int8_codebook"])
        change(model)
        with pytest.raises(Exception, match=message):
            session(model)


ALONE = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
y, = session.run(None, {"x": numpy.load(sys.argv[3])})
numpy.save(sys.argv[4], y)
assert "torch" not in sys.modules and "compress" not in sys.modules
"""


def test_library_works_without_this_package(tmp_path: Any) -> None:
    operator, x, arguments = CALLS["w4g32_a8"]
    onnx.save(node_model(operator, x, arguments), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    files = [str(cpu_library.PATH), *(str(tmp_path / name) for name in ("model.onnx", "x.npy", "y.npy"))]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *files], check=True, cwd=tmp_path, timeout=120)
    y = torch.from_numpy(np.load(tmp_path / "y.npy"))
    assert error(y, expected(operator, x, arguments)) <= LIMIT


def test_mutated_models_never_crash() -> None:
    """In a process of its own, since a crash would be one."""
    script = str(__file__).replace("test_onnx_kernels", "onnx_mutations")
    done = subprocess.run([sys.executable, script, "11", "250"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, computed = map(int, done.stdout.split())
    assert refused > 50 and computed > 10
