import dataclasses
from typing import Any

import pytest
import torch
from vq_cases import VQ_CASES, VQ_CONV_CASES, build_vq, build_vq_conv

from compress.errors import FormatError
from compress.kernels.backends import explain, select
from compress.kernels.schema import VQCONV2D, VQMATMUL, Operator
from compress.kernels.vq_call import VqConvCall, VqMatmulCall


@pytest.mark.parametrize(("operator", "kind"), [(VQMATMUL, VqMatmulCall), (VQCONV2D, VqConvCall)])
def test_calls_mirror_the_operator_table(operator: Operator, kind: type[VqMatmulCall]) -> None:
    fields = dataclasses.fields(kind)
    assert kind.name == operator.name
    assert [f.name for f in fields if not f.kw_only] == [i.name for i in operator.inputs]
    assert {f.name: f.default for f in fields if f.kw_only and f.default is not dataclasses.MISSING} == {
        a.name: a.default for a in operator.attributes if a.default is not None
    }
    assert {f.name for f in fields if f.kw_only} == {a.name for a in operator.attributes}
    assert {f.name for f in fields if f.default is None} == {i.name for i in operator.inputs if i.optional}


def _call(**change: Any) -> VqMatmulCall:
    x, named = build_vq(VQ_CASES[1])
    return VqMatmulCall(change.pop("x", x), **{**named, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 129)}, r"codes are torch.uint8 \[37, 38\], k=129 needs torch.uint8 \[37, 49\]"),
        ({"codes": torch.zeros(37, 38)}, "codes are torch.float32"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"d": 0}, "sub-vectors of at least 1"),
        ({"codebook": torch.zeros(64, 4)}, r"codebook is torch.float32 \[64, 4\], not .* \[64, 2\]"),
        ({"codebook": torch.zeros(64, 2, dtype=torch.int32)}, "codebook is torch.int32"),
        ({"scales": torch.ones(37)}, "neither"),
        ({"scales": torch.ones(37, 2)}, "neither"),
        ({"scales": torch.ones(37, 1, dtype=torch.uint8)}, "scales are torch.uint8"),
        ({"mode": "fast"}, "'fast' is not exact or folded"),
        ({"activation": "relu"}, "'relu' is not none, gelu_tanh or silu"),
        ({"residual": torch.zeros(33, 36)}, "residual is"),
        ({"act_scale": torch.tensor(1.0)}, "act_scale with act_format 'none'"),
        ({"act_format": "int9"}, "no number format"),
        ({"low_rank_a": torch.zeros(100, 2)}, "go together"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        _call(**change).check()
    if "no number format" not in message:
        assert caught.value.where == "compress::vqmatmul"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, "in 4 groups"),
        ({"kernel": [3]}, "kernel needs two values"),
        ({"act_group": 4}, "activation groups"),
        ({"x": torch.zeros(6, 9, 7)}, r"x \[6, 9, 7\]"),
        ({"residual": torch.zeros(3, 9, 9, 7)}, "residual is"),
    ],
)
def test_convolution_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    x, named = build_vq_conv(VQ_CONV_CASES[1])
    with pytest.raises(FormatError, match=message):
        VqConvCall(change.pop("x", x), **{**named, **change}).check()


def test_facts_tell_what_backends_need_and_nothing_of_the_rows() -> None:
    facts = {_call(x=torch.zeros(*rows, 100)).facts() for rows in ((1,), (33,), (2, 5))}
    (only,) = facts
    assert (only.k, only.n, only.bits, only.vector, only.integer_codebook) == (100, 37, 6, 2, False)
    assert (only.scale_blocks, only.scale_dtype, only.folds) == (1, "float16", False)
    x, named = build_vq(next(case for case in VQ_CASES if case.name == "everything"))
    rich = VqMatmulCall(x, **named).facts()
    assert rich.folds and rich.residual and (rich.activation, rich.act_format) == ("silu", "int8")


def test_backends_without_a_vq_kernel_say_so() -> None:
    call = _call(act_format="int8")
    said = explain("vqmatmul", call.facts())
    assert not said["torch_int8"].ok and "vqmatmul" in said["torch_int8"].reason
    assert select("vqmatmul", call.facts()).supports("vqmatmul", call.facts()).ok
