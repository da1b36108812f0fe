from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from fusion_graphs import Sketch, built, fused, numbers, ops

from compress.export.file_nodes import FileNodes
from compress.export.graph_edit import constant, get_input, input_names

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


TWINS = (
    ("bias", lambda s: s.normal(12)),
    ("global_scale", lambda s: s.normal(1)),
    ("zero_points", lambda s: s.random.integers(0, 16, (12, 1)).astype("uint8")),
    ("table", lambda s: s.normal(16)),
    ("act_scale", lambda s: abs(s.normal(1))),
    ("smooth", lambda s: s.normal(16)),
)


@pytest.mark.parametrize(("name", "numbers_of"), TWINS, ids=[name for name, _ in TWINS])
@pytest.mark.parametrize("present", [True, False])
def test_of_equal_codes_and_scales_the_ones_with_equal_others(
    name: str, numbers_of: Callable[[Sketch], Any], present: bool, tmp_path: Path
) -> None:
    def twins(s: Sketch) -> None:
        shared = {"codes": s.random.integers(0, 256, (12, 1, 8)).astype("uint8")}
        shared |= {"scales": abs(s.normal(12, 1)), "bias": s.normal(12)}
        second = shared | {name: numbers_of(s)} if present else shared
        s.output(s.linear(s.rows("a"), **(shared | {name: numbers_of(s)})), s.linear(s.rows("b"), **second))

    model = built(twins)
    ir.save(model, tmp_path / "model.onnx")
    found = FileNodes(tmp_path)
    for node in ops(model):
        given = {n: constant(get_input(node, n)) for n in input_names(node)}
        own = {n: torch.from_numpy(array.copy()) for n, array in given.items() if array is not None}
        written = found.find({"x": X} | own, torch.ones(2, 5, 12))
        assert written is not None and written.tensors.keys() == {"x", *own}
        assert all(torch.equal(written.tensors[n], tensor) for n, tensor in own.items())


def test_a_residual_does_not_make_a_node_another_layer_s(tmp_path: Path) -> None:
    def twins(s: Sketch) -> None:
        shared = {"codes": s.random.integers(0, 256, (16, 1, 8)).astype("uint8"), "scales": abs(s.normal(16, 1))}
        x = s.rows("b")
        s.output(s.linear(s.rows("a"), 16, **shared), s.node("Add", s.linear(x, 16, **shared), x))

    model = fused(twins)[0]
    ir.save(model, tmp_path / "model.onnx")
    node = next(node for node in ops(model) if get_input(node, "residual") is not None)
    own = {name: torch.from_numpy(numbers(node, name).copy()) for name in ("codes", "scales", "bias")}
    written = FileNodes(tmp_path).find({"x": X} | own, torch.ones(2, 5, 16))
    assert written is not None and "residual" in written.tensors
    assert torch.equal(written.tensors["bias"], own["bias"])


def test_unknown_codes_are_not_found(nodes: FileNodes) -> None:
    assert nodes.find(layers()[0] | {"codes": torch.zeros(12, 1, 8, dtype=torch.uint8)}, X) is None
