from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fusion_graphs import Build, Sketch, built, fused, numbers, ops, run, types

from compress.export.fusions import RULES, fuse
from compress.export.graph_edit import attribute, get_input

Values = Callable[[Sketch, ir.Value], ir.Value]


def assert_same_results(build: Build, limit: float = 1e-6) -> None:
    expected, found = run(built(build)), run(fused(build)[0])
    for a, b in zip(expected, found, strict=True):
        assert np.abs(a - b).max() <= limit * np.abs(a).max()


# --- bias


def test_an_added_constant_becomes_the_bias() -> None:
    def build(s: Sketch) -> None:
        s.output(s.node("Add", s.constant(s.normal(12)), s.linear(s.rows(), without=("bias",))))

    model, counts = fused(build)
    assert counts == {"bias": 1} and types(model) == ["QMatMul"]
    assert numbers(ops(model)[0], "bias").shape == (12,)
    assert_same_results(build)


def test_a_bias_of_images_loses_its_unit_axes() -> None:
    def build(s: Sketch) -> None:
        y = s.convolution(s.input("x", "batch", 4, 8, 8), without=("bias",))
        s.output(s.node("Add", y, s.constant(s.normal(1, 6, 1, 1))))

    model, counts = fused(build)
    assert counts == {"bias": 1} and list(get_input(ops(model)[0], "bias").shape) == [6]
    assert_same_results(build)


def _bias_twice(s: Sketch) -> None:
    s.output(s.node("Add", s.linear(s.rows()), s.constant(s.normal(12))))


def _bias_along_rows(s: Sketch) -> None:
    s.output(s.node("Add", s.linear(s.rows(), without=("bias",)), s.constant(s.normal(5, 1))))


def _bias_after_a_branch(s: Sketch) -> None:
    y = s.linear(s.rows(), without=("bias",))
    s.output(s.node("Add", y, s.constant(s.normal(12))), y)


def _bias_that_widens(s: Sketch) -> None:
    y = s.linear(s.rows(), without=("bias",))
    s.output(s.node("Add", y, s.constant(s.normal(1, 1, 1, 12)), shape=[1, "batch", 5, 12]))


@pytest.mark.parametrize("build", [_bias_twice, _bias_along_rows, _bias_after_a_branch, _bias_that_widens])
def test_other_additions_stay(build: Build) -> None:
    model, counts = fused(build)
    assert not counts and "Add" in types(model)


# --- activation


def _silu(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Mul", s.node("Sigmoid", y), y)


def _gelu(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Gelu", y, approximate="tanh")


def _number(s: Sketch, value: float, shape: tuple[int, ...] = ()) -> ir.Value:
    return s.constant(np.full(shape, value, dtype=np.float32))


def _spelled_gelu(s: Sketch, y: ir.Value) -> ir.Value:
    cube = s.node("Mul", _number(s, 0.044715), s.node("Pow", y, _number(s, 3.0)))
    inner = s.node("Mul", s.node("Add", y, cube), _number(s, math.sqrt(2 / math.pi), (1,)))
    return s.node("Mul", s.node("Mul", y, _number(s, 0.5)), s.node("Add", s.node("Tanh", inner), _number(s, 1.0)))


def _sigmoid_as_tanh(s: Sketch, y: ir.Value) -> ir.Value:
    half = s.node("Mul", y, _number(s, 0.5))
    return s.node("Mul", half, s.node("Add", _number(s, 1.0), s.node("Tanh", half)))


FUNCTIONS: list[tuple[Values, str]] = [
    (_silu, "silu"),
    (_sigmoid_as_tanh, "silu"),
    (_gelu, "gelu_tanh"),
    (_spelled_gelu, "gelu_tanh"),
]


@pytest.mark.parametrize(("function", "name"), FUNCTIONS)
@pytest.mark.parametrize("images", [False, True])
def test_activations_are_recognized_however_they_are_written(function: Values, name: str, images: bool) -> None:
    def build(s: Sketch) -> None:
        y = s.convolution(s.input("x", "batch", 4, 8, 8)) if images else s.linear(s.rows())
        s.output(function(s, y))

    model, counts = fused(build)
    assert counts == {name: 1} and len(types(model)) == 1
    assert attribute(ops(model)[0], "activation") == name
    assert_same_results(build)


def _exact_gelu(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Gelu", y)


def _quick_gelu(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Mul", y, s.node("Sigmoid", s.node("Mul", y, _number(s, 1.702))))


def _gated(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Mul", s.node("Sigmoid", y), s.rows("gate", 12))


def _with_branch(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Add", _silu(s, y), s.node("Neg", y))


def _with_inner_branch(s: Sketch, y: ir.Value) -> ir.Value:
    sigmoid = s.node("Sigmoid", y)
    return s.node("Add", s.node("Mul", y, sigmoid), s.node("Mul", sigmoid, s.rows("gate", 12)))


def _returned_too(s: Sketch, y: ir.Value) -> ir.Value:
    s.outputs.append(y)
    return _silu(s, y)


def _wider(s: Sketch, y: ir.Value) -> ir.Value:
    return s.node("Mul", y, s.node("Sigmoid", s.node("Mul", y, _number(s, 1.0, (1, 1, 1, 1)))))


@pytest.mark.parametrize(
    "function", [_exact_gelu, _quick_gelu, _gated, _with_branch, _with_inner_branch, _returned_too, _wider]
)
def test_other_functions_stay(function: Values) -> None:
    def build(s: Sketch) -> None:
        s.output(function(s, s.linear(s.rows())))

    model, counts = fused(build)
    assert not counts and types(model) == types(built(build))


def test_a_function_that_the_graph_returns_stays() -> None:
    def build(s: Sketch) -> None:
        s.outputs.append(_silu(s, s.linear(s.rows())))

    assert not fused(build)[1]


# --- residual


def test_the_operator_moves_to_the_place_of_the_addition() -> None:
    """The residual may be computed after the operator, and from the same x."""

    def build(s: Sketch) -> None:
        x = s.rows(k=16)
        y = _gelu(s, s.linear(x, 16))
        late = s.node("Tanh", s.node("Neg", x))
        s.output(s.node("Add", late, y))

    model, counts = fused(build)
    assert counts == {"gelu_tanh": 1, "residual": 1} and types(model) == ["Neg", "Tanh", "QMatMul"]
    assert_same_results(build)


def test_of_two_operators_one_takes_the_other_as_its_residual() -> None:
    def build(s: Sketch) -> None:
        x = s.input("x", "batch", 4, 8, 8)
        s.output(s.node("Add", s.convolution(x), s.convolution(s.node("Neg", x))))

    model, counts = fused(build)
    assert counts == {"residual": 1} and types(model).count("QConv2d") == 2 and "Add" not in types(model)
    assert_same_results(build)


def _residual_from_itself(s: Sketch) -> None:
    y = s.linear(s.rows())
    s.output(s.node("Add", y, s.node("Neg", y)))


def _residual_of_one_row(s: Sketch) -> None:
    s.output(s.node("Add", s.linear(s.rows()), s.input("r", "batch", 1, 12)))


def _residual_of_another_batch(s: Sketch) -> None:
    s.output(s.node("Add", s.linear(s.rows()), s.input("r", "other", 5, 12)))


def _residual_doubled(s: Sketch) -> None:
    y = s.linear(s.rows())
    s.output(s.node("Add", y, y))


def _residual_behind_a_gate(s: Sketch) -> None:
    y = s.node("Mul", s.linear(s.rows()), s.input("gate", "batch", 1, 12))
    s.output(s.node("Add", y, s.rows("r", 12)))


def _residual_of_a_returned_value(s: Sketch) -> None:
    y = s.linear(s.rows())
    s.outputs.append(y)
    s.output(s.node("Add", y, s.rows("r", 12)))


@pytest.mark.parametrize(
    "build",
    [
        _residual_from_itself,
        _residual_of_one_row,
        _residual_of_another_batch,
        _residual_doubled,
        _residual_behind_a_gate,
        _residual_of_a_returned_value,
    ],
)
def test_other_sums_stay(build: Build) -> None:
    model, counts = fused(build)
    assert not counts and types(model) == types(built(build))


def test_an_operator_takes_one_residual_and_no_function_after_it() -> None:
    def build(s: Sketch) -> None:
        once = s.node("Add", s.linear(s.rows()), s.rows("a", 12))
        s.output(_silu(s, s.node("Add", once, s.rows("b", 12))))

    model, counts = fused(build)
    assert counts == {"residual": 1} and types(model) == ["QMatMul", "Add", "Sigmoid", "Mul"]
    assert_same_results(build)


# --- shared inputs


def test_projections_of_one_input_are_joined() -> None:
    def build(s: Sketch) -> None:
        x = s.node("Neg", s.rows())
        s.output(*(s.node("Tanh", s.linear(x, n)) for n in (12, 8, 20)))

    model, counts = fused(build)
    assert counts == {"shared_input": 3} and types(model) == ["Neg", "QMatMul", "Split", "Tanh", "Tanh", "Tanh"]
    codes = get_input(ops(model)[0], "codes")
    assert list(codes.shape) == [40, 1, 8] and codes.name == "block.layer1+layer3+layer5.codes"
    assert_same_results(build)


@pytest.mark.parametrize("act_format", ["int8", "none"])
def test_per_tensor_scales_and_missing_biases_fill_their_rows(act_format: str) -> None:
    def build(s: Sketch) -> None:
        x = s.rows()
        zero = np.array([[7]], dtype=np.uint8)
        one = np.array([[0.03]], dtype=np.float32)
        first = s.linear(x, 12, without=("bias",), zero_points=zero, scales=one, act_format=act_format)
        zeros = s.random.integers(0, 16, (8, 1)).astype(np.uint8)
        s.output(first, s.linear(x, 8, zero_points=zeros, act_format=act_format))

    model, counts = fused(build)
    assert counts == {"shared_input": 2}
    node = ops(model)[0]
    assert numbers(node, "bias")[:12].tolist() == [0.0] * 12
    assert numbers(node, "zero_points")[:12, 0].tolist() == [7] * 12
    assert list(get_input(node, "scales").shape) == [20, 1]
    assert_same_results(build)


def test_group_scales_static_scales_and_smoothing_that_agree_are_joined() -> None:
    def build(s: Sketch) -> None:
        x = s.rows()
        smooth = 0.5 + s.random.random(16).astype(np.float32)
        for _ in range(2):  # equal bytes count as equal
            common: dict[str, Any] = {"smooth": smooth, "act_scale": np.array([0.02], dtype=np.float32)}
            s.output(s.linear(x, block_size=8, **common))

    assert fused(build)[1] == {"shared_input": 2}
    assert_same_results(build)


def test_joined_weights_stay_below_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.export.shared_inputs.LARGEST_WEIGHT", 2 * 12 * 16)

    def build(s: Sketch) -> None:
        x = s.rows()
        s.output(*(s.linear(x) for _ in range(5)))

    model, counts = fused(build)
    assert counts == {"shared_input": 4} and [get_input(n, "codes").shape[0] for n in ops(model)] == [24, 24, 12]
    assert_same_results(build)


def _differing(**second: Any) -> Build:
    def build(s: Sketch) -> None:
        x = s.rows()
        s.output(s.linear(x), s.linear(x, **second))

    return build


def _two_inputs(s: Sketch) -> None:
    s.output(s.linear(s.rows("a")), s.linear(s.rows("b")))


def _returned(s: Sketch) -> None:
    x = s.rows()
    s.outputs += [s.linear(x), s.linear(x)]


def _functions_of_their_own(s: Sketch) -> None:
    x = s.rows()
    s.output(_silu(s, s.linear(x)), s.linear(x))


_F32 = np.float32


@pytest.mark.parametrize(
    "build",
    [
        _differing(act_format="none"),
        _differing(bits=8, codes=np.zeros((12, 1, 16), dtype=np.uint8)),
        _differing(block_size=8),
        _differing(act_scale=np.array([0.02], dtype=_F32)),
        _differing(smooth=np.ones(16, dtype=_F32)),
        _differing(zero_points=np.array([[8]], dtype=np.uint8)),
        _differing(scales=np.ones((12, 1), dtype=np.float16)),
        _differing(table=np.arange(16, dtype=_F32)),
        _differing(global_scale=np.array([2.0], dtype=_F32)),
        _differing(low_rank_a=np.ones((16, 2), dtype=_F32), low_rank_b=np.ones((2, 12), dtype=_F32)),
        _two_inputs,
        _returned,
    ],
)
def test_operators_that_differ_stay_apart(build: Build) -> None:
    model, counts = fused(build)
    assert not counts and len(ops(model)) == 2


def test_operators_of_different_functions_stay_apart() -> None:
    assert fused(_functions_of_their_own)[1] == {"silu": 1}


# --- smoothing


@pytest.mark.parametrize("images", [False, True])
def test_a_factor_for_each_channel_becomes_smoothing(images: bool) -> None:
    def build(s: Sketch) -> None:
        x = s.input("x", "batch", 4, 8, 8) if images else s.rows()
        factor = s.constant(0.5 + s.random.random((4, 1, 1) if images else (1, 16)).astype(np.float32))
        scaled = s.node("Mul", factor, x, shape=x.shape)
        s.output(s.convolution(scaled) if images else s.linear(scaled))

    model, counts = fused(build)
    assert counts == {"smooth": 1} and len(types(model)) == 1
    assert list(get_input(ops(model)[0], "smooth").shape) == [4 if images else 16]
    assert_same_results(build)


def test_a_factor_of_joined_operators_becomes_smoothing_too() -> None:
    def build(s: Sketch) -> None:
        x = s.node("Mul", s.rows(), s.constant(s.normal(16)))
        s.output(s.linear(x), s.linear(x))

    model, counts = fused(build)
    assert counts == {"shared_input": 2, "smooth": 1} and types(model) == ["QMatMul", "Split"]
    assert_same_results(build)


def _factor_read_elsewhere(s: Sketch) -> None:
    x = s.node("Mul", s.rows(), s.constant(s.normal(16)))
    s.output(s.linear(x), x)


def _factor_of_rows(s: Sketch) -> None:
    s.output(s.linear(s.node("Mul", s.rows(), s.constant(s.normal(5, 1)))))


def _factor_computed(s: Sketch) -> None:
    s.output(s.linear(s.node("Mul", s.rows(), s.input("c", "batch", 1, 16))))


def _smoothed_already(s: Sketch) -> None:
    x = s.node("Mul", s.rows(), s.constant(s.normal(16)))
    s.output(s.linear(x, smooth=np.full(16, 2.0, dtype=np.float32)))


@pytest.mark.parametrize("build", [_factor_read_elsewhere, _factor_of_rows, _factor_computed, _smoothed_already])
def test_other_factors_stay(build: Build) -> None:
    model, counts = fused(build)
    assert not counts and "Mul" in types(model)


# --- duplicates and the whole


def test_layers_of_equal_weights_run_once() -> None:
    """Equal bytes are enough, whatever the names, and whatever the size."""

    def build(s: Sketch) -> None:
        x = s.rows(k=64)
        weights: dict[str, Any] = {"codes": s.random.integers(0, 256, (64, 1, 32)).astype(np.uint8)}
        weights |= {"scales": s.random.random((64, 1)).astype(np.float32), "bias": s.normal(64)}
        for _ in range(3):
            s.output(_silu(s, s.linear(x, 64, **weights)))

    model, counts = fused(build)
    assert counts["duplicate"] >= 6 and counts["silu"] == 1 and len(ops(model)) == 1
    assert not any("_1" in name or "layer3" in name for name in model.graph.initializers)
    assert_same_results(build)


def test_every_rule_is_counted_and_a_second_pass_finds_nothing() -> None:
    def build(s: Sketch) -> None:
        s.output(_silu(s, s.linear(s.rows())))

    model = built(build)
    assert fuse(model) == dict.fromkeys(RULES, 0) | {"silu": 1}
    assert not any(fuse(model).values())
