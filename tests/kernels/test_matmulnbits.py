"""The packed layout is onnxruntime's: stock MatMulNBits reads the same bytes and computes the same product."""

import numpy as np
import pytest
import torch

from compress.formats import WeightSpec, quantize_weight
from compress.kernels import reference


@pytest.mark.parametrize(("name", "group"), [("int4", 16), ("int4", 32), ("int8", 32), ("int2", 32)])
def test_stock_onnxruntime_reads_our_bytes(name: str, group: int) -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 100, generator=generator)
    spec = WeightSpec(name, "group", group)
    q = quantize_weight(torch.randn(37, 100, generator=generator), spec)
    bits = spec.number_format.bits
    inputs = {"codes": q.codes.numpy(), "scales": q.scales.numpy()}
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=100,
        N=37,
        bits=bits,
        block_size=group,
        accuracy_level=1,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 37])],
        [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])
    expected = reference.qmatmul(x, q.codes, q.scales, bits=bits, block_size=group)
    assert float((y - expected).norm() / expected.norm()) < 1e-5
