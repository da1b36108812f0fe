"""A default onnxruntime session must not expand packed weights when it optimizes the model."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from compress.formats import WeightSpec, quantize_weight
from compress.kernels.onnx_single import single_node_model
from compress.kernels.schema import QCONV2D, QMATMUL

SLACK = 6000  # bytes: bias, tables and the like


def optimized_bytes(model: onnx.ModelProto, folder: Path) -> int:
    """Bytes of all initializers in what a stock session with default options runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


SPECS = [
    WeightSpec("int8"),
    WeightSpec("int8", "group", 32),
    WeightSpec("int6", "group", 32),
    WeightSpec("int4"),
    WeightSpec("int4", "group", 32, False, "float16"),
    WeightSpec("int3", "group", 32),
    WeightSpec("int2"),
    WeightSpec("fp4_e2m1", "group", 32),
    WeightSpec("fp8_e4m3"),
    WeightSpec("nf4"),
    WeightSpec.natural("mxfp4"),
    WeightSpec.natural("nvfp4"),
]
CASES = [
    (spec, mode) for spec in SPECS for mode in ("exact", "folded") if mode == "exact" or spec.number_format.bits < 8
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("act_format", ["none", "int8"])
@pytest.mark.parametrize("shape", [(256, 128), (64, 32, 3, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize(("spec", "mode"), CASES, ids=str)
def test_packed_weights_stay_packed(
    spec: WeightSpec, mode: str, shape: tuple[int, ...], act_format: str, tmp_path: Path
) -> None:
    g = torch.Generator().manual_seed(0)
    q = quantize_weight(torch.randn(*shape, generator=g), spec)
    tensors = {"x": torch.randn(2, shape[1], *([4, 4] if len(shape) == 4 else []), generator=g)}
    tensors |= {"codes": q.codes, "scales": q.scales}
    if q.zero_points is not None:
        tensors["zero_points"] = q.zero_points
    table = spec.number_format.table()
    if table is not None:
        tensors["table"] = table
    if q.global_scale is not None:
        tensors["global_scale"] = q.global_scale
    length = torch.Size(shape[1:]).numel()
    attributes = {"bits": spec.number_format.bits, "block_size": spec.block_size(length)}
    attributes |= {"act_format": act_format, "mode": mode}
    operator = QMATMUL if len(shape) == 2 else QCONV2D
    if len(shape) == 4:
        attributes["kernel"] = (3, 3)
    used = optimized_bytes(single_node_model(operator, tensors, attributes, 21), tmp_path)
    assert used <= q.bytes() + SLACK
    assert used + SLACK < 4 * torch.Size(shape).numel()  # the test can tell packed from expanded
