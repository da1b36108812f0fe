"""The reference against the same arithmetic written out in float64, and the properties the schema promises."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import CASES, CONV_CASES, KERNEL, Case, build, build_conv
from torch import Tensor

from compress.errors import FormatError
from compress.formats import FORMATS, quantize_weight
from compress.kernels import reference
from compress.kernels.call import MatmulCall

EXACT = [case for case in CASES if case.attributes.get("mode") != "folded"]
CONV_EXACT = [case for case in CONV_CASES if case.attributes.get("mode") != "folded"]


def _weight(named: dict[str, Any], k: int) -> Tensor:
    """Decodes bit by bit, in Python integers."""
    rows = []
    for channel, blocks in enumerate(named["codes"].tolist()):
        row: list[float] = []
        for b, block in enumerate(blocks):
            stream = int.from_bytes(bytes(block), "little")
            scale = _scale(named["scales"].expand(named["codes"].shape[:2])[channel, b], named.get("global_scale"))
            zeros = named["zero_points"]
            zero = (
                2 ** (named["bits"] - 1) if zeros is None else int(zeros.expand(named["codes"].shape[:2])[channel, b])
            )
            for i in range(named["block_size"]):
                code = stream >> i * named["bits"] & (1 << named["bits"]) - 1
                row.append((code - zero if named["table"] is None else float(named["table"][code])) * scale)
        rows.append(row[:k])
    return torch.tensor(rows, dtype=torch.float64)


def _scale(stored: Tensor, whole: Tensor | None) -> float:
    value = 2.0 ** (int(stored) - 127) if stored.dtype == torch.uint8 else float(stored)
    return value if whole is None else value * float(whole)


def _after(y: Tensor, named: dict[str, Any]) -> Tensor:
    """Activation function and residual, in float64."""
    if named.get("activation") == "gelu_tanh":
        y = y / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    if named.get("activation") == "silu":
        y = y / (1 + torch.exp(-y))
    return y + named["residual"].double() if "residual" in named else y


def _activations(x: Tensor, named: dict[str, Any], rows: tuple[int, ...]) -> Tensor:
    """Rounds float32 x with one scale over the axes `rows`, or the static one; returns float64."""
    if named.get("act_format", "none") == "none":
        return x.double()
    fmt = FORMATS[named["act_format"]]
    dynamic = x.abs().amax(rows, keepdim=True) / fmt.max_value
    scale = named.get("act_scale", torch.where(dynamic == 0, 1.0, dynamic))
    if fmt.values is not None:
        table = torch.tensor(fmt.values, dtype=torch.float64)
        nearest = (x.double() / scale.double())[..., None].sub(table).abs().argmin(-1)
        rounded: Tensor = table[nearest] * scale.double()
        return rounded
    zero = named.get("act_zero_point", torch.tensor(0.0))
    codes = ((x / scale).round() + zero).clamp(*fmt.code_range)
    integers: Tensor = (codes - zero).double() * scale.double()
    return integers


def _grouped(x: Tensor, named: dict[str, Any]) -> Tensor:
    parts = torch.split(x, named.get("act_group") or x.shape[-1], -1)
    if named.get("act_group") and "act_scale" in named:
        scales = named["act_scale"]
        return torch.cat([_activations(p, {**named, "act_scale": scales[i]}, (-1,)) for i, p in enumerate(parts)], -1)
    return torch.cat([_activations(part, named, (-1,)) for part in parts], -1)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_matmul_is_the_written_out_arithmetic(case: Case) -> None:
    x, named = build(case)
    s = x * named.get("smooth", torch.ones(()))
    y = _grouped(s, named) @ _weight(named, x.shape[-1]).T
    if "bias" in named:
        y = y + named["bias"].double()
    if "low_rank_a" in named:
        y = y + s.double() @ named["low_rank_a"].double() @ named["low_rank_b"].double()
    y = _after(y, named)
    got = reference.qmatmul(x, **named)
    assert got.dtype == torch.float32 and got.shape == (33, 37)
    assert float((got - y).norm() / y.norm()) < 1e-6


@pytest.mark.parametrize("case", CONV_EXACT, ids=lambda case: case.name)
def test_conv_is_the_written_out_arithmetic(case: Case) -> None:
    x, named = build_conv(case)
    s = x * named.get("smooth", torch.ones(6))[:, None, None]
    k = named["codes"].shape[1] * named["block_size"]
    shape = (9, 6 // named.get("groups", 1), *KERNEL)
    geometry: dict[str, Any] = {name: named[name] for name in ("stride", "padding", "dilation") if name in named}
    w = _weight(named, min(k, shape[1] * 6)).reshape(shape)
    bias = named["bias"].double() if "bias" in named else None
    a = _activations(s, named, (1, 2, 3))
    y = F.conv2d(a, w, bias, groups=named.get("groups", 1), **geometry)
    if "low_rank_a" in named:
        low_rank = (named["low_rank_a"].double() @ named["low_rank_b"].double()).T
        y = y + F.conv2d(s.double(), low_rank.reshape(shape), **geometry)
    y = _after(y, named)
    got = reference.qconv2d(x, **named)
    assert got.shape == y.shape
    assert float((got - y).norm() / y.norm()) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rows", [(0,), (1,), (31,), (2, 3, 5)])
def test_any_number_of_rows(case: Case, rows: tuple[int, ...]) -> None:
    _, named = build(case)
    if "act_scale" in named and named["act_scale"].dim() == 2:
        named["act_scale"] = named["act_scale"][0]
    x = torch.randn(*rows, 100, generator=torch.Generator().manual_seed(0))
    residual = {"residual": torch.ones(*rows, 37)} if "residual" in named else {}
    y = reference.qmatmul(x, **named | residual)
    assert y.shape == (*rows, 37)
    flat = reference.qmatmul(x.reshape(-1, 100), **named | {n: r.reshape(-1, 37) for n, r in residual.items()})
    torch.testing.assert_close(y.reshape(-1, 37), flat, rtol=1e-5, atol=1e-5)


def test_output_has_the_type_of_x() -> None:
    for case in (CASES[0], CASES[7]):
        x, named = build(case)
        half = reference.qmatmul(x.half(), **named)
        assert half.dtype == torch.float16
        assert torch.equal(half, reference.qmatmul(x.half().float(), **named).half())


def test_padding_is_a_real_zero_under_a_zero_point() -> None:
    x, named = build_conv(CONV_CASES[3])
    inside = reference.qconv2d(F.pad(x, (1, 1, 1, 1)), **{**named, "padding": [0, 0]})
    zero_is_exact = reference.qconv2d(x, **named)
    torch.testing.assert_close(zero_is_exact, inside, rtol=1e-6, atol=1e-5)


def test_each_image_has_its_own_scale() -> None:
    x, named = build_conv(CONV_CASES[1])
    x[1] *= 1000
    y = reference.qconv2d(x, **named)
    torch.testing.assert_close(y[:1], reference.qconv2d(x[:1], **named), rtol=1e-6, atol=1e-6)


def test_inputs_are_left_alone() -> None:
    for case in CASES:
        x, named = build(case)
        kept = {name: value.clone() for name, value in named.items() if isinstance(value, Tensor)} | {"x": x.clone()}
        reference.qmatmul(x, **named)
        assert all(torch.equal(value, {**named, "x": x}[name]) for name, value in kept.items())


def test_weight_is_what_dequantize_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in EXACT:
        x, named = build(case)
        q = quantize_weight(torch.randn(37, 100, generator=generator), case.spec)
        scales = {"scales": q.scales, "zero_points": q.zero_points, "global_scale": q.global_scale}
        given = {**named, "codes": q.codes, **scales}
        assert torch.equal(reference.weight(MatmulCall(x, **given)), q.dequantize())


def test_arguments_are_checked() -> None:
    x, named = build(CASES[0])
    with pytest.raises(FormatError, match="compress::qmatmul: codes are"):
        reference.qmatmul(x[:, :5], **named)
    with pytest.raises(TypeError, match="bits"):
        reference.qmatmul(x, named["codes"], named["scales"])
