from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from export_models import Exported

from compress.export.parity import OPERATOR_LIMIT, OperatorParity, Parity, check_parity, relative_error
from compress.export.session import kernels_available


def test_a_fresh_export_passes(exported: Exported) -> None:
    inputs = exported.adapter.example_inputs(3, seed=3)
    parity = check_parity(
        exported.adapter, exported.model, exported.folder, inputs, threads=1, original=exported.original
    )
    assert parity.passed and parity.worst_operator is not None
    assert parity.worst_operator.error <= OPERATOR_LIMIT
    assert len(parity.kernel_operators) == (len(parity.operators) if kernels_available() else 0)
    assert all(call.error <= OPERATOR_LIMIT for call in parity.kernel_operators)
    names = {layer.name for layer in exported.adapter.layers(exported.original)}
    assert {call.layer for call in parity.operators} == names
    assert parity.limit is not None and parity.onnx_error <= parity.limit == 0.5 * (parity.quantization_noise or 0)


def test_a_checkpoint_that_changed_after_the_export_is_noticed(dit: Exported) -> None:
    changed = copy.deepcopy(dit.model)
    layer = changed.get_submodule(dit.adapter.layers(dit.original)[0].name)
    layer.weight_scale *= 3
    inputs = dit.adapter.example_inputs(2)
    honest = check_parity(dit.adapter, dit.model, dit.folder, inputs, threads=1, original=dit.original)
    parity = check_parity(dit.adapter, changed, dit.folder, inputs, threads=1, original=dit.model)
    assert parity.onnx_error > 10 * honest.onnx_error
    assert not parity.passed  # that export is as far from the changed model as the model itself is


def test_without_an_original_only_the_operators_decide(dit: Exported) -> None:
    parity = check_parity(dit.adapter, dit.model, dit.folder, dit.adapter.example_inputs(1), threads=1)
    assert parity.quantization_noise is None and parity.limit is None and parity.passed


def test_verdict() -> None:
    good, bad = OperatorParity("a", "QMatMul", 1e-6), OperatorParity("b", "QMatMul", 2e-5)
    assert Parity((good,), 0.1, 0.3).passed
    assert not Parity((good,), 0.2, 0.3).passed
    assert not Parity((good, bad), 0.0, None).passed
    assert Parity((good, bad), 0.0, None).worst_operator == bad
    assert Parity((), 0.0, None).worst_operator is None
    assert not Parity((good,), 0.1, 0.3, (bad,), 0.1).passed and not Parity((good,), 0.1, 0.3, (good,), 0.2).passed
    assert Parity((good,), 0.1, 0.3, (bad,), 0.1).worst_kernel == bad


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_what_is_not_finite_does_not_pass(error: float) -> None:
    good, lost = OperatorParity("a", "QMatMul", 1e-6), OperatorParity("b", "QMatMul", error)
    assert not Parity((good, lost), 0.0, None).passed
    assert {Parity(calls, 0.0, None).worst_operator for calls in ((good, lost), (lost, good))} == {lost}
    for noise in (0.3, None):
        assert not Parity((good,), error, noise).passed
        assert not Parity((good,), 0.1, noise, (good,), error).passed
    assert not Parity((good,), 0.1, math.nan).passed


def test_a_layer_whose_codes_are_not_in_the_file_fails(dit: Exported, tmp_path: Path) -> None:
    shutil.copytree(dit.folder, tmp_path / "changed")
    proto = onnx.load(str(tmp_path / "changed" / "model.onnx"))
    codes = next(t for t in proto.graph.initializer if t.name.endswith("net.2.weight_packed"))
    numbers = onnx.numpy_helper.to_array(codes).copy()
    numbers.flat[0] ^= 1
    codes.CopyFrom(onnx.numpy_helper.from_array(numbers, codes.name))
    onnx.save(proto, str(tmp_path / "changed" / "model.onnx"))
    parity = check_parity(dit.adapter, dit.model, tmp_path / "changed", dit.adapter.example_inputs(1), threads=1)
    layer = codes.name.removesuffix(".weight_packed")
    assert [(call.layer, call.error) for call in parity.operators if not call.passed] == [(layer, math.inf)]
    assert parity.worst_operator is not None and parity.worst_operator.layer == layer
    assert not kernels_available() or parity.worst_kernel == parity.worst_operator


def test_hooks_are_gone_afterwards(dit: Exported) -> None:
    check_parity(dit.adapter, dit.model, dit.folder, dit.adapter.example_inputs(1), threads=1)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in dit.model.modules())


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.1]), torch.tensor([1.0])) == pytest.approx(0.1, rel=1e-6)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
