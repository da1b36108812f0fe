from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vq_cases import VQ_CASES, VQ_CONV_CASES, VqCase, build_vq, build_vq_conv

from compress.errors import FormatError, RunError
from compress.kernels import torch_ops, vq_reference

assert torch_ops  # registers torch.ops.compress
VQMATMUL = torch.ops.compress.vqmatmul.default
VQCONV2D = torch.ops.compress.vqconv2d.default


@pytest.mark.parametrize("case", VQ_CASES, ids=lambda case: case.name)
def test_opcheck_vqmatmul(case: VqCase) -> None:
    """One of the checks traces with symbolic sizes."""
    x, named = build_vq(case, 5)
    assert set(torch.library.opcheck(VQMATMUL, (x,), named).values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", VQ_CONV_CASES, ids=lambda case: case.name)
def test_opcheck_vqconv2d(case: VqCase) -> None:
    x, named = build_vq_conv(case, 2)
    assert set(torch.library.opcheck(VQCONV2D, (x,), named).values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", VQ_CASES, ids=lambda case: case.name)
def test_the_operator_agrees_with_the_reference(case: VqCase) -> None:
    x, named = build_vq(case)
    y, expected = VQMATMUL(x, **named), vq_reference.vqmatmul(x, **named)
    assert float((y - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("case", VQ_CONV_CASES, ids=lambda case: case.name)
def test_the_convolution_agrees_with_the_reference(case: VqCase) -> None:
    x, named = build_vq_conv(case)
    y, expected = VQCONV2D(x, **named), vq_reference.vqconv2d(x, **named)
    assert float((y - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fake_results_have_the_shape_and_type_of_real_ones(dtype: torch.dtype) -> None:
    x, named = build_vq(VQ_CASES[0])
    fake = VQMATMUL(x.to("meta", dtype).reshape(3, 11, 100), **_on_meta(named))
    assert fake.shape == (3, 11, 37) and fake.dtype == dtype and fake.device.type == "meta"
    for case in VQ_CONV_CASES:
        x, named = build_vq_conv(case)
        assert VQCONV2D(x.to("meta"), **_on_meta(named)).shape == VQCONV2D(x, **named).shape


def _on_meta(named: dict[str, Any]) -> dict[str, Any]:
    return {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in named.items()}


class _Layer(nn.Module):
    def __init__(self, named: dict[str, Any]) -> None:
        super().__init__()
        self.tensors = {name: v for name, v in named.items() if isinstance(v, Tensor)}
        self.attributes = {name: v for name, v in named.items() if not isinstance(v, Tensor)}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = VQMATMUL(x, **self.tensors, **self.attributes)
        return y


def test_export_keeps_a_symbolic_batch() -> None:
    x, named = build_vq(VQ_CASES[2])
    model = _Layer(named)
    with torch.no_grad():
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},), strict=False)
        program = program.run_decompositions()
        assert [node.target for node in program.graph.nodes].count(VQMATMUL) == 1
        for rows in (1, 33):
            assert torch.equal(program.module()(x[:rows]), model(x[:rows]))


def test_asking_for_a_gradient_is_an_error() -> None:
    x, named = build_vq(VQ_CASES[0])
    with pytest.raises(RunError, match="packed weights have no gradient"):
        VQMATMUL(x.requires_grad_(), **named).sum().backward()


def test_errors_reach_the_caller() -> None:
    x, named = build_vq(VQ_CASES[0])
    with pytest.raises(FormatError, match="compress::vqmatmul: codes are"):
        VQMATMUL(x[:, :3], **named)
