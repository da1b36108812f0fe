from typing import Any

import pytest
import torch
from kernel_cases import CASES, CONV_CASES, Case, build, build_conv
from torch import Tensor, nn

from compress.errors import FormatError, RunError
from compress.kernels import reference, torch_ops
from compress.kernels.backends import select
from compress.kernels.call import ConvCall, MatmulCall
from compress.kernels.schema import OPERATORS

QMATMUL = torch.ops.compress.qmatmul.default
QCONV2D = torch.ops.compress.qconv2d.default


def test_registered_from_the_operator_table() -> None:
    assert sorted(torch_ops._CALLS) == sorted(operator.name for operator in OPERATORS)
    for operator in OPERATORS:
        schema = getattr(torch.ops.compress, operator.name).default._schema
        names = [argument.name for argument in schema.arguments]
        assert names == [i.name for i in operator.inputs] + [a.name for a in operator.attributes]


def checks(named: dict[str, Any]) -> tuple[str, ...]:
    """All of opcheck's tests, except the one that compares float8 tensors, which torch 2.13 cannot."""
    others = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    return others if named["scales"].dtype == torch.float8_e4m3fn else ("test_schema", *others)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_opcheck_qmatmul(case: Case) -> None:
    x, named = build(case, 5)
    result = torch.library.opcheck(QMATMUL, (x,), named, test_utils=checks(named))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_opcheck_qconv2d(case: Case) -> None:
    x, named = build_conv(case, 2)
    result = torch.library.opcheck(QCONV2D, (x,), named, test_utils=checks(named))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operator_is_the_selected_backend(case: Case) -> None:
    x, named = build(case)
    call = MatmulCall(x, **named)
    assert torch.equal(QMATMUL(x, **named), select("qmatmul", call.facts())(call))


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_the_convolution_is_the_selected_backend(case: Case) -> None:
    x, named = build_conv(case)
    call = ConvCall(x, **named)
    assert torch.equal(QCONV2D(x, **named), select("qconv2d", call.facts())(call))


def test_the_environment_forces_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, named = build(CASES[7], 401)
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    assert torch.equal(QMATMUL(x, **named), reference.qmatmul(x, **named))


def test_fake_results_have_the_shape_and_type_of_real_ones() -> None:
    for dtype in (torch.float32, torch.float16):
        x, named = build(CASES[7])
        meta = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in named.items()}
        fake = QMATMUL(x.to("meta", dtype).reshape(3, 11, 100), **meta)
        assert fake.shape == (3, 11, 37) and fake.dtype == dtype and fake.device.type == "meta"
    for case in CONV_CASES:
        x, named = build_conv(case)
        meta = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in named.items()}
        assert QCONV2D(x.to("meta"), **meta).shape == QCONV2D(x, **named).shape


class _Layers(nn.Module):
    """A convolution, then a matmul over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = self._keep("conv", build_conv(CONV_CASES[1])[1])
        self.linear = self._keep("linear", build(CASES[7], k=9)[1])

    def _keep(self, prefix: str, named: dict[str, Any]) -> dict[str, Any]:
        for name, value in named.items():
            if isinstance(value, Tensor):
                self.register_buffer(f"{prefix}_{name}", value)
        return {name: value for name, value in named.items() if not isinstance(value, Tensor)}

    def _arguments(self, prefix: str) -> dict[str, Any]:
        buffers = {name.removeprefix(f"{prefix}_"): b for name, b in self.named_buffers() if name.startswith(prefix)}
        return {**buffers, **getattr(self, prefix)}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = QCONV2D(x, **self._arguments("conv"))
        z: Tensor = QMATMUL(y.flatten(2).transpose(1, 2), **self._arguments("linear"))
        return z


def test_export_keeps_the_operators_and_a_symbolic_batch() -> None:
    model = _Layers()
    x = build_conv(CONV_CASES[1], 2)[0]
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
        program = program.run_decompositions()
        targets = [node.target for node in program.graph.nodes]
        assert targets.count(QCONV2D) == targets.count(QMATMUL) == 1
        for batch in (1, 3):
            other = build_conv(CONV_CASES[1], batch)[0]
            assert torch.equal(program.module()(other), model(other))


def test_asking_for_a_gradient_is_an_error() -> None:
    x, named = build(CASES[7])
    y = QMATMUL(x.requires_grad_(), **named)
    with pytest.raises(RunError, match="packed weights have no gradient"):
        y.sum().backward()


def test_errors_reach_the_caller() -> None:
    x, named = build(CASES[0])
    with pytest.raises(FormatError, match="compress::qmatmul: codes are"):
        QMATMUL(x[:, :3], **named)
