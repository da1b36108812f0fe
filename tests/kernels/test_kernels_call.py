import dataclasses
from typing import Any

import pytest
import torch
from kernel_cases import CASES, CONV_CASES, build, build_conv

from compress.errors import FormatError
from compress.kernels.call import ConvCall, Facts, MatmulCall
from compress.kernels.schema import QCONV2D, QMATMUL, Operator


@pytest.mark.parametrize(("operator", "kind"), [(QMATMUL, MatmulCall), (QCONV2D, ConvCall)])
def test_calls_mirror_the_operator_table(operator: Operator, kind: type[MatmulCall]) -> None:
    fields = dataclasses.fields(kind)
    assert kind.name == operator.name
    assert [f.name for f in fields if not f.kw_only] == [i.name for i in operator.inputs]
    assert {f.name: f.default for f in fields if f.kw_only and f.default is not dataclasses.MISSING} == {
        a.name: a.default for a in operator.attributes if a.default is not None
    }
    assert {f.name for f in fields if f.kw_only} == {a.name for a in operator.attributes}
    optional = {i.name for i in operator.inputs if i.optional}
    assert {f.name for f in fields if f.default is None} == optional


def _call(**change: Any) -> MatmulCall:
    x, named = build(CASES[0])
    return MatmulCall(change.pop("x", x), **{**named, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 129)}, r"codes are torch.uint8 \[37, 4, 16\], k=129 needs torch.uint8 \[37, 5, 16\]"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"block_size": 0}, "a block of at least 1"),
        ({"scales": torch.ones(37)}, "scales .* do not broadcast"),
        ({"scales": torch.ones(37, 3)}, "scales .* do not broadcast"),
        ({"zero_points": torch.ones(36, 4, dtype=torch.uint8)}, "zero_points .* do not broadcast"),
        ({"table": torch.zeros(8)}, r"table is torch.float32 \[8\], not floating point \[16\]"),
        ({"table": torch.zeros(16, dtype=torch.int8)}, "table is torch.int8"),
        ({"table": torch.zeros(16), "zero_points": torch.ones(37, 4, dtype=torch.uint8)}, "exclude each other"),
        ({"mode": "fast"}, "'fast' is not exact or folded"),
        ({"act_scale": torch.tensor(1.0)}, "act_scale with act_format 'none'"),
        ({"act_format": "int8", "act_zero_point": torch.tensor(1.0)}, "act_zero_point without act_scale"),
        (
            {"act_format": "int8", "act_scale": torch.ones(100)},
            r"act_scale \[100\] does not broadcast against \[33, 1\]",
        ),
        ({"act_format": "int8", "act_group": -1}, "is negative"),
        ({"act_format": "int9"}, "no number format"),
        (
            {"act_format": "fp8_e4m3", "act_scale": torch.tensor(1.0), "act_zero_point": torch.tensor(1.0)},
            "have no zero point",
        ),
        ({"low_rank_a": torch.zeros(100, 2)}, "go together"),
        ({"scales": torch.ones(37, 4, dtype=torch.int32)}, "scales are torch.int32, not floating point or uint8"),
        ({"global_scale": torch.ones(2)}, r"global_scale has shape \[2\], not one element"),
        ({"act_format": "mxfp4"}, "mxfp4 is a format of weights"),
        ({"activation": "relu"}, "activation 'relu' is not none, gelu_tanh or silu"),
        ({"residual": torch.zeros(33, 36)}, r"residual is torch.float32 \[33, 36\], the output is .* \[33, 37\]"),
        ({"residual": torch.zeros(33, 37).half()}, "residual is torch.float16"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        _call(**change).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, "in 4 groups"),
        ({"kernel": [3]}, "kernel needs two values"),
        ({"act_group": 4}, "for qmatmul only"),
        ({"x": torch.zeros(6, 9, 7)}, r"x \[6, 9, 7\]"),
    ],
)
def test_convolution_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    x, named = build_conv(CONV_CASES[1])
    with pytest.raises(FormatError, match=message):
        ConvCall(change.pop("x", x), **{**named, **change}).check()


def test_a_grouped_convolution_has_no_low_rank_branch() -> None:
    x, named = build_conv(next(case for case in CONV_CASES if case.name == "conv_grouped"))
    with pytest.raises(FormatError, match="groups=1"):
        ConvCall(x, **named, low_rank_a=torch.zeros(12, 2), low_rank_b=torch.zeros(2, 9)).check()


def test_facts_do_not_depend_on_the_rows() -> None:
    facts = {_call(x=torch.zeros(*rows, 100)).facts() for rows in ((1,), (33,), (2, 5))}
    assert facts == {Facts(k=100, n=37, bits=4, block_size=32, scale_blocks=4)}


def test_facts_say_what_is_given() -> None:
    x, named = build(next(case for case in CASES if case.name == "both_zero_points"))
    facts = MatmulCall(x, **named).facts()
    assert facts.zero_points and facts.act_static and facts.act_zero_point and not facts.table
    assert (facts.scale_blocks, facts.act_format) == (2, "uint8")
    x, named = build(next(case for case in CASES if case.name == "folded_nvfp4"))
    facts = MatmulCall(x, **named).facts()
    assert facts.folds and facts.table_is_whole and facts.global_scale and facts.scale_dtype == "float8_e4m3fn"
    x, named = build(next(case for case in CASES if case.name == "everything_after"))
    facts = MatmulCall(x, **named).facts()
    assert (facts.activation, facts.residual, facts.table_is_whole) == ("silu", True, False)


@pytest.mark.parametrize(
    ("name", "folds"),
    [("folded", True), ("folded_nf4", True), ("folded_fp4_channel", False), ("nf4", False), ("folded_mxfp4", True)],
)
def test_folding_is_for_what_one_scale_and_whole_numbers_do_not_express(name: str, folds: bool) -> None:
    x, named = build(next(case for case in CASES if case.name == name))
    assert MatmulCall(x, **named).folds == folds
