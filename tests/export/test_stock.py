"""Layers as operators of a stock onnxruntime: what they become, that they compute the same, and stay packed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_models import SPECS, Exported, adapter_of, quantized
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline
from torch import Tensor

from compress.errors import ExportError
from compress.export.onnx_export import export_denoiser
from compress.export.parity import OPERATOR_LIMIT, ROUNDING_SHARE, check_parity, relative_error
from compress.export.session import OnnxDenoiser, open_session
from compress.export.stock import INLINED, LayerNote, stock_model
from compress.formats import WeightSpec, quantize_weight
from compress.kernels import reference, vq_reference
from compress.kernels.onnx_functions import OPSETS
from compress.kernels.onnx_single import single_node_model
from compress.kernels.schema import QCONV2D, QMATMUL, VQMATMUL
from compress.quantize.spec import ActivationSpec, LayerSpec

K, N = 256, 96
INT8 = {"act_format": "int8"}


@dataclass(frozen=True)
class Case:
    """A layer, and what it must become."""

    name: str
    spec: WeightSpec
    operator: str
    exact: bool = True
    level: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


LINEAR = (
    Case("w4g32", WeightSpec("int4", "group", 32), "MatMulNBits", True, 1),
    Case("w4g32_a8", WeightSpec("int4", "group", 32), "MatMulNBits", False, 4, INT8, ("bias",)),
    Case("w4g64_asymmetric_a8", WeightSpec("int4", "group", 64, False, "float16"), "MatMulNBits", False, 4, INT8),
    Case("w4g48", WeightSpec("int4", "group", 48), "MatMulNBits", True, 1),
    Case("w4_channel_a8", WeightSpec("int4"), "MatMulNBits", False, 4, INT8, ("bias",)),
    Case("w4_tensor_asymmetric", WeightSpec("int4", "tensor", symmetric=False), "MatMulNBits", True, 1),
    Case("w2g16_a8_has_no_int8_kernel", WeightSpec("int2", "group", 16), "MatMulNBits", True, 1, INT8),
    Case("w2g64_a8", WeightSpec("int2", "group", 64), "MatMulNBits", False, 4, INT8),
    Case("w3g32_asymmetric", WeightSpec("int3", "group", 32, symmetric=False), "MatMulNBits", True, 1),
    Case("w6g64", WeightSpec("int6", "group", 64), "MatMulNBits", True, 1, {}, ("bias",)),
    Case("w8g32_asymmetric_a8", WeightSpec("int8", "group", 32, False), "MatMulNBits", False, 4, INT8),
    Case("w4g64_a8g64", WeightSpec("int4", "group", 64), "MatMulNBits", False, 4, {**INT8, "act_group": 64}),
    Case(
        "w4g64_a4g64", WeightSpec("int4", "group", 64), "MatMulNBits", True, 1, {"act_format": "int4", "act_group": 64}
    ),
    Case("fp4g16", WeightSpec("fp4_e2m1", "group", 16), "MatMulNBits", True, 1),
    Case("fp4g32_a8", WeightSpec("fp4_e2m1", "group", 32), "MatMulNBits", False, 4, INT8),
    Case("mxfp4", WeightSpec.natural("mxfp4"), "MatMulNBits", True, 1),
    Case("nvfp4", WeightSpec.natural("nvfp4"), "MatMulNBits", True, 1, {"act_format": "fp8_e4m3"}),
    Case("nvfp4_a8", WeightSpec.natural("nvfp4"), "MatMulNBits", False, 4, INT8),
    Case("w4g32_folded", WeightSpec("int4", "group", 32), "MatMulNBits", False, 1, {"mode": "folded"}),
    Case("nf4g64_folded", WeightSpec("nf4", "group", 64), "MatMulBnb4", False, None, {"mode": "folded"}),
    Case("w4_static", WeightSpec("int4"), "MatMulNBits", True, 1, INT8, ("act_scale",)),
    Case("svdquant", WeightSpec("int4", "group", 64), "MatMulNBits", False, 4, INT8, ("smooth", "low_rank", "bias")),
    Case("nf4g64", WeightSpec("nf4", "group", 64), "MatMulBnb4", True, None, {}, ("bias",)),
    Case("nf4_channel_a8", WeightSpec("nf4"), "MatMulBnb4", True, None, INT8),
    Case("w8a8", WeightSpec("int8"), "MatMulInteger", True, None, INT8, ("bias", "smooth")),
    Case("w8a8_asymmetric", WeightSpec("int8", symmetric=False), "MatMulInteger", True, None, {"act_format": "uint8"}),
    Case("w8a4", WeightSpec("int8"), "MatMulInteger", True, None, {"act_format": "int4"}),
    Case("fp4_channel_a8", WeightSpec("fp4_e2m1"), "MatMulInteger", True, None, INT8),
    Case("w8a8_static", WeightSpec("int8"), "MatMul", True, None, INT8, ("bias", "act_scale")),
    Case(
        "w8a8_static_asymmetric",
        WeightSpec("int8", symmetric=False),
        "MatMul",
        True,
        None,
        {"act_format": "uint8"},
        ("bias", "act_scale", "act_zero_point"),
    ),
    Case("w4g8", WeightSpec("int4", "group", 8), INLINED, True, None, INT8),
    Case("fp8", WeightSpec("fp8_e4m3"), INLINED, True, None, {"act_format": "fp8_e4m3"}, ("bias",)),
)
CONVOLUTIONS = (
    Case("conv_w8a8", WeightSpec("int8"), "ConvInteger", True, None, INT8, ("bias",)),
    Case("conv_w8a8_static", WeightSpec("int8"), "ConvInteger", True, None, INT8, ("bias", "act_scale")),
    Case("conv_w8", WeightSpec("int8"), "Conv", True, None, {}, ("bias",)),
    Case("conv_w4", WeightSpec("int4", symmetric=False), "Conv"),
    Case("conv_w4_tensor", WeightSpec("int4", "tensor"), "Conv"),
    Case("conv_w4g16_a8", WeightSpec("int4", "group", 16, False), "Conv", True, None, INT8, ("bias",)),
    Case("conv_w8g20", WeightSpec("int8", "group", 20), "Conv"),
    Case("conv_w4g16_folded", WeightSpec("int4", "group", 16), "Conv", False, None, {"mode": "folded"}),
    Case("conv_w8_folded", WeightSpec("int8"), "Conv", True, None, {"mode": "folded"}),
    Case("conv_w3", WeightSpec("int3", "group", 16), INLINED),
    Case("conv_fp4", WeightSpec("fp4_e2m1", "group", 16), INLINED),
)


def optional_inputs(k: int, channels: int, n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    return {
        "bias": torch.randn(n, generator=g),
        "act_scale": torch.tensor([0.03]),
        "act_zero_point": torch.tensor([117.0]),
        "smooth": torch.rand(channels, generator=g) + 0.5,
        "low_rank_a": torch.randn(k, 4, generator=g) * 0.1,
        "low_rank_b": torch.randn(4, n, generator=g) * 0.1,
    }


def call(case: Case, x: Tensor, weight: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Present tensors and attributes of the operator call, by name."""
    q = quantize_weight(weight, case.spec)
    optional = optional_inputs(weight[0].numel(), weight.shape[1], len(weight))
    given = {
        name: value for name, value in optional.items() if name.removesuffix("_a").removesuffix("_b") in case.inputs
    }
    table = case.spec.number_format.table()
    tensors = {"x": x, "codes": q.codes, "scales": q.scales, **given}
    tensors |= {} if q.zero_points is None else {"zero_points": q.zero_points}
    tensors |= {} if table is None else {"table": table}
    tensors |= {} if q.global_scale is None else {"global_scale": q.global_scale}
    block = case.spec.block_size(weight[0].numel())
    return tensors, {"bits": case.spec.number_format.bits, "block_size": block, **case.attributes}


def linear_call(case: Case, rank: int = 3) -> tuple[dict[str, Tensor], dict[str, Any]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(*(2, 5, 9)[: rank - 1], K, generator=g)
    return call(case, x, torch.randn(N, K, generator=g))


def stock_of(
    operator: Any, tensors: dict[str, Tensor], attributes: dict[str, Any], opset: int = OPSETS[0]
) -> tuple[Any, LayerNote]:
    model, (note,) = stock_model(single_node_model(operator, tensors, attributes, opset), opset)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"} and not model.functions
    return model, note


def run(model: Any, x: Tensor) -> Tensor:
    (y,) = open_session(model.SerializeToString(), threads=1).run(None, {"x": x.numpy()})
    return torch.from_numpy(y)


def optimized(model: Any, folder: Path) -> onnx.GraphProto:
    """What a stock session with default options runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def stored_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of the initializers; 4-bit types count half a byte."""
    return sum(len(t.raw_data) or onnx.numpy_helper.to_array(t).nbytes for t in graph.initializer)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_linear_layers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, attributes = linear_call(case)
    model, note = stock_of(QMATMUL, tensors, attributes)
    assert (note.operator, note.exact) == (case.operator, case.exact)
    levels = [a.i for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels == ([] if case.level is None else [case.level])  # without it onnxruntime chooses
    expected = reference.qmatmul(**tensors, **attributes)
    error = relative_error(run(model, tensors["x"]), expected)
    if case.exact:
        assert error <= OPERATOR_LIMIT
        monkeypatch.setattr("compress.export.session._bytes_saturate", lambda: True)
        assert relative_error(run(model, tensors["x"]), expected) <= OPERATOR_LIMIT
        return
    kept = {name: value for name, value in tensors.items() if not name.startswith("act_")}
    unrounded = reference.qmatmul(**kept, **(attributes | {"act_format": "none", "act_group": 0, "mode": "exact"}))
    assert error <= OPERATOR_LIMIT + ROUNDING_SHARE * relative_error(unrounded, expected)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(case: Case, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 8, 7, 6, generator=g)
    tensors, attributes = call(case, x, torch.randn(12, 8 // groups, 3, 3, generator=g))
    attributes |= {"kernel": [3, 3], "stride": [2, 1], "padding": [1, 1], "groups": groups}
    model, note = stock_of(QCONV2D, tensors, attributes)
    assert (note.operator, note.exact) == (case.operator, case.exact)
    assert any("folding" in text for text in note.differs) != case.exact
    expected = reference.qconv2d(**tensors, **(attributes | {"mode": "exact"}))
    assert relative_error(run(model, x), expected) <= OPERATOR_LIMIT
    monkeypatch.setattr("compress.export.session._bytes_saturate", lambda: True)
    assert relative_error(run(model, x), expected) <= OPERATOR_LIMIT


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_static_bytes_are_one_integer_product(rank: int, tmp_path: Path) -> None:
    """Two axes are special: onnxruntime would make a Gemm of MatMul and Add, and compute it in float32."""
    case = next(case for case in LINEAR if case.name == "w8a8_static_asymmetric")
    tensors, attributes = linear_call(case, rank)
    model, _ = stock_of(QMATMUL, tensors, attributes)
    graph = optimized(model, tmp_path)
    assert [n.op_type for n in graph.node if "MatMul" in n.op_type or n.op_type == "Gemm"] == ["MatMulIntegerToFloat"]
    assert relative_error(run(model, tensors["x"]), reference.qmatmul(**tensors, **attributes)) <= OPERATOR_LIMIT


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*LINEAR, *CONVOLUTIONS], ids=lambda case: case.name)
def test_a_default_session_does_not_expand_the_weights(case: Case, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(3)
    shape, operator = ((128, K), QMATMUL) if case in LINEAR else ((64, 48, 3, 3), QCONV2D)
    x = torch.randn(2, shape[1], *([4, 4] if len(shape) == 4 else []), generator=g)
    tensors, attributes = call(case, x, torch.randn(*shape, generator=g))
    attributes |= {} if operator is QMATMUL else {"kernel": [3, 3]}
    model, _ = stock_of(operator, tensors, attributes)
    count = torch.Size(shape).numel()
    before, after = stored_bytes(model.graph), stored_bytes(optimized(model, tmp_path))
    assert after <= before + 6000
    assert before <= (1 + 4 / 16) * count + 8000 < 4 * count


@pytest.mark.parametrize(("act_format", "zero"), [("uint8", -3.0), ("uint8", 256.0), ("int8", 128.0), ("uint8", 7.5)])
def test_zero_points_that_are_no_bytes_are_refused(act_format: str, zero: float) -> None:
    case = Case("", WeightSpec("int8"), "", attributes={"act_format": act_format}, inputs=("act_scale",))
    tensors, attributes = linear_call(case)
    tensors["act_zero_point"] = torch.tensor([zero])
    with pytest.raises(ExportError, match=rf"act_zero_point is \[{zero}\], no code of {act_format}"):
        stock_of(QMATMUL, tensors, attributes)


def test_weights_that_no_initializer_holds_stay_in_the_function() -> None:
    tensors, attributes = linear_call(LINEAR[0])
    model = single_node_model(QMATMUL, tensors, attributes, 21)
    scales = next(t for t in model.graph.initializer if t.name == "scales")
    model.graph.input.append(onnx.helper.make_tensor_value_info("scales", 1, list(scales.dims)))
    model.graph.initializer.remove(scales)
    stock, (note,) = stock_model(model, 21)
    assert note.operator == INLINED and note.differs[0] == "the weight is no constant"
    feeds = {"x": tensors["x"].numpy(), "scales": tensors["scales"].numpy()}
    (y,) = open_session(stock.SerializeToString(), threads=1).run(None, feeds)
    assert relative_error(torch.from_numpy(y), reference.qmatmul(**tensors, **attributes)) <= OPERATOR_LIMIT


@pytest.mark.parametrize(
    ("mode", "act_format", "operator", "differs"),
    [
        ("exact", "int8", INLINED, "computes in float32: the weight is decoded in each run"),
        ("folded", "int8", "MatMulInteger", "codewords are looked up in each run"),
        ("folded", "none", INLINED, "computes in float32: the weight is decoded in each run"),
    ],
)
def test_codebooks_of_vectors_take_their_function(mode: str, act_format: str, operator: str, differs: str) -> None:
    g = torch.Generator().manual_seed(5)
    codes = torch.randint(256, (N, K // 4), generator=g, dtype=torch.uint8)  # 8 bits for 4 positions
    tensors = {"x": torch.randn(2, 5, K, generator=g), "codes": codes, "codebook": torch.randn(256, 4, generator=g)}
    tensors["scales"] = torch.rand(N, 1, generator=g)
    attributes = {"bits": 8, "d": 4, "act_format": act_format, "mode": mode}
    model, note = stock_of(VQMATMUL, tensors, attributes)
    assert note.operator == operator and note.exact and differs in note.differs
    expected = vq_reference.vqmatmul(**tensors, **attributes)
    assert relative_error(run(model, tensors["x"]), expected) <= OPERATOR_LIMIT


STOCK_SPECS = (
    *SPECS,
    LayerSpec(WeightSpec("int4", "group", 16), ActivationSpec("int8", "dynamic")),
    LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", symmetric=False)),
    LayerSpec(WeightSpec("int4", "group", 16)),
)


@pytest.fixture(scope="module", params=["dit", "unet"])
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = tiny_dit_pipeline(folder / "model", blocks=1) if request.param == "dit" else None
    adapter = adapter_of(pipeline or tiny_unet2d_pipeline(folder / "model"))
    model = quantized(adapter, STOCK_SPECS)
    return Exported(adapter, adapter.load(), model, export_denoiser(adapter, model, folder / "onnx", operators="stock"))


def test_a_whole_model_has_stock_operators_only(stock: Exported) -> None:
    model = onnx.load(str(stock.result.path))
    assert not model.functions and stock.result.functions == ()
    assert {node.domain for node in model.graph.node} == {"", "com.microsoft"}
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


def test_every_layer_has_a_note(stock: Exported) -> None:
    notes = stock.result.layers
    assert sum(stock.result.nodes_by_operator.values()) == len(notes) > 8
    names = {layer.name for layer in stock.adapter.layers(stock.original)}
    assert {note.layer for note in notes if "+" not in note.layer} <= names  # "a+b": joined, as they read one input
    facts = json.loads((stock.folder / "export.json").read_text())
    assert facts["operators"] == "stock" and facts["function_domain"] == {}
    assert facts["layers"] == [note.as_dict() for note in notes]
    assert all(note.differs for note in notes if not note.exact)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_whole_model_computes_the_checkpoint(stock: Exported, batch: int) -> None:
    inputs = stock.adapter.example_inputs(batch, seed=batch)
    with torch.no_grad():
        expected = stock.adapter.denoise(stock.model, *inputs)
        original = stock.adapter.denoise(stock.original, *inputs)
    found = OnnxDenoiser(stock.folder, threads=1)(*inputs)
    assert relative_error(found, expected) <= 0.5 * relative_error(expected, original)


def test_the_rewriting_for_older_cpus_keeps_the_result(stock: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """`session.x64quantprecision` makes int8 weights uint8, if they have zero points of the right shape."""
    inputs = stock.adapter.example_inputs(2, seed=4)
    expected = OnnxDenoiser(stock.folder, threads=1)(*inputs)
    monkeypatch.setattr("compress.export.session._bytes_saturate", lambda: True)
    assert relative_error(OnnxDenoiser(stock.folder, threads=1)(*inputs), expected) <= 1e-3


def test_parity_knows_stock_files(stock: Exported) -> None:
    inputs = stock.adapter.example_inputs(2, seed=3)
    parity = check_parity(stock.adapter, stock.model, stock.folder, inputs, threads=1, original=stock.original)
    assert parity.passed
    assert {call.layer for call in parity.operators} == {layer.name for layer in stock.adapter.layers(stock.original)}
    rounded = [call for call in parity.operators if call.limit > OPERATOR_LIMIT]
    assert rounded and all(call.limit < 0.05 for call in rounded)
    assert {call.operator for call in rounded} <= {"QMatMul as MatMulNBits", "QMatMul as MatMulBnb4"}


@pytest.mark.parametrize("stock", ["dit"], indirect=True)
def test_equal_input_gives_equal_bytes(stock: Exported, tmp_path: Path) -> None:
    again = export_denoiser(stock.adapter, stock.model, tmp_path, operators="stock")
    assert again.path.read_bytes() == stock.result.path.read_bytes()


@pytest.mark.parametrize("case", [*LINEAR, *CONVOLUTIONS], ids=lambda case: case.name)
def test_the_last_opset_too(case: Case) -> None:
    g = torch.Generator().manual_seed(4)
    shape, operator, expect = (N, K), QMATMUL, reference.qmatmul
    if case in CONVOLUTIONS:
        shape, operator, expect = (12, 8, 3, 3), QCONV2D, reference.qconv2d
    x = torch.randn(2, shape[1], *shape[2:], generator=g)
    tensors, attributes = call(case, x, torch.randn(*shape, generator=g))
    attributes |= {} if operator is QMATMUL else {"kernel": [3, 3]}
    model, note = stock_of(operator, tensors, attributes, OPSETS[1])
    assert note.operator == case.operator
    error = relative_error(run(model, x), expect(**tensors, **(attributes | {"mode": "exact"})))
    assert error <= (OPERATOR_LIMIT if case.level != 4 else 0.1)


@pytest.mark.slow
def test_a_whole_model_with_the_last_opset(tmp_path: Path) -> None:
    adapter = adapter_of(tiny_dit_pipeline(tmp_path / "model", blocks=1))
    model = quantized(adapter, STOCK_SPECS)
    export_denoiser(adapter, model, tmp_path / "onnx", operators="stock", opset=OPSETS[1])
    inputs = adapter.example_inputs(2)
    with torch.no_grad():
        expected = adapter.denoise(model, *inputs)
    found = OnnxDenoiser(tmp_path / "onnx", threads=1)(*inputs)
    assert np.isfinite(found.numpy()).all() and relative_error(found, expected) < 0.1
