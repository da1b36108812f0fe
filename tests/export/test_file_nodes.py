from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from fusion_graphs import Sketch, built, fused, numbers, ops

from compress.export.file_nodes import FileNodes
from compress.export.graph_edit import constant, get_input

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def graph(s: Sketch) -> None:
    x = s.rows()
    s.output(s.linear(x), s.linear(x, 8))
    y = s.linear(s.node("Mul", s.node("Neg", x), s.constant(s.normal(16))), 16, without=("bias",))
    y = s.node("Add", y, s.constant(s.normal(16)))
    s.output(s.node("Add", s.node("Mul", y, s.node("Sigmoid", y)), x))


def layers() -> list[dict[str, torch.Tensor]]:
    """Codes and scales of each layer of the graph, with an x."""
    found = []
    for node in ops(built(graph)):
        arrays = {name: constant(get_input(node, name)) for name in ("codes", "scales", "bias")}
        found.append({"x": X} | {n: torch.from_numpy(a.copy()) for n, a in arrays.items() if a is not None})
    return found


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> FileNodes:
    ir.save(fused(graph)[0] if request.param else built(graph), tmp_path / "model.onnx")
    return FileNodes(tmp_path)


def test_a_layer_is_found_in_whatever_node_holds_its_rows(nodes: FileNodes) -> None:
    y = torch.ones(2, 5, 8)
    written = nodes.find(layers()[1], y)
    assert written is not None and torch.equal(written.expected, y) and written.tensors["x"] is X
    assert torch.equal(written.tensors["codes"][written.rows], layers()[1]["codes"])
    assert torch.equal(written.tensors["bias"][written.rows], layers()[1]["bias"])


def test_what_was_fused_is_part_of_the_expectation(tmp_path: Path) -> None:
    model, counts = fused(graph)
    assert counts == {"bias": 1, "silu": 1, "residual": 1, "shared_input": 2, "smooth": 1}
    ir.save(model, tmp_path / "model.onnx")
    y = torch.linspace(-3, 3, 160).reshape(2, 5, 16)
    written = FileNodes(tmp_path).find(layers()[2], y)
    assert written is not None and written.attributes["activation"] == "silu"
    assert torch.allclose(written.expected, F.silu(y) + written.tensors["residual"])
    assert {"smooth", "bias"}.isdisjoint(written.tensors)  # the recorded call comes before the Add, after the Mul


def test_of_equal_codes_the_ones_with_equal_scales_are_taken(tmp_path: Path) -> None:
    def twins(s: Sketch) -> None:
        codes = s.random.integers(0, 256, (12, 1, 8)).astype("uint8")
        s.output(s.linear(s.rows("a"), codes=codes), s.linear(s.rows("b"), codes=codes))

    model = built(twins)
    ir.save(model, tmp_path / "model.onnx")
    for node in ops(model):
        scales = torch.from_numpy(numbers(node, "scales").copy())
        codes = torch.from_numpy(numbers(node, "codes").copy())
        written = FileNodes(tmp_path).find({"x": X, "codes": codes, "scales": scales}, torch.ones(2, 5, 12))
        assert written is not None and torch.equal(written.tensors["scales"], scales)


def test_unknown_codes_are_not_found(nodes: FileNodes) -> None:
    assert nodes.find(layers()[0] | {"codes": torch.zeros(12, 1, 8, dtype=torch.uint8)}, X) is None
