from __future__ import annotations

import copy

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


def test_hooks_are_gone_afterwards(dit: Exported) -> None:
    check_parity(dit.adapter, dit.model, dit.folder, dit.adapter.example_inputs(1), threads=1)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in dit.model.modules())


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.1]), torch.tensor([1.0])) == pytest.approx(0.1, rel=1e-6)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
