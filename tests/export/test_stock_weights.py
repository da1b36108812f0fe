from __future__ import annotations

import pytest
import torch

from compress.export.stock_weights import IntegerWeight, block_of, is_nf4, matmul_nbits, read_weight
from compress.formats import WeightSpec, get_format, quantize_weight
from compress.formats.layout import unpack_codes


def weight_of(spec: WeightSpec, n: int = 6, k: int = 100) -> tuple[IntegerWeight | None, torch.Tensor]:
    q = quantize_weight(torch.randn(n, k, generator=torch.Generator().manual_seed(0)), spec)
    tensors = {"codes": q.codes, "scales": q.scales}
    tensors |= {} if q.zero_points is None else {"zero_points": q.zero_points}
    table = spec.number_format.table()
    tensors |= {} if table is None else {"table": table}
    found = read_weight(
        tensors,
        bits=spec.number_format.bits,
        block_size=spec.block_size(k),
        k=k,
        grouped=spec.granularity == "group",
    )
    return found, q.dequantize()


def decoded(weight: IntegerWeight) -> torch.Tensor:
    spread = torch.arange(weight.k) // weight.group
    groups = -(-weight.k // weight.group)
    zeros, scales = (v.expand(weight.n, groups)[:, spread] for v in (weight.zeros, weight.scales))
    return (weight.codes - zeros) * scales


SPECS = [
    WeightSpec("int4"),
    WeightSpec("int4", "group", 24, symmetric=False),
    WeightSpec("int3", "group", 16),
    WeightSpec("int8", "tensor"),
    WeightSpec("fp4_e2m1", "group", 32),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_are_exact(spec: WeightSpec) -> None:
    weight, expected = weight_of(spec)
    assert weight is not None
    assert torch.equal(decoded(weight), expected)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_blocks_hold_the_same_values(spec: WeightSpec) -> None:
    weight, expected = weight_of(spec)
    assert weight is not None
    block = block_of(weight)
    if block is None:
        assert weight.group == 24
        return
    bits, found = weight.container_bits, matmul_nbits(weight, block)
    codes = unpack_codes(torch.from_numpy(found["codes"]), bits, block).float()
    scales = torch.from_numpy(found["scales"])[..., None]
    assert "zero_points" not in found
    values = ((codes - (1 << bits - 1)) * scales).flatten(1)[:, : weight.k]
    assert torch.equal(values, expected)


def test_tables_without_a_step_have_no_integers() -> None:
    assert weight_of(WeightSpec("fp8_e4m3"))[0] is None
    assert weight_of(WeightSpec("nf4", "group", 20))[0] is None
    assert is_nf4(get_format("nf4").table())
    assert not is_nf4(get_format("fp4_e2m1").table()) and not is_nf4(None)


@pytest.mark.parametrize(
    ("group", "block"), [(8, None), (16, 16), (48, 16), (96, 32), (256, 128), (1000, 128), (20, 32)]
)
def test_block_sizes(group: int, block: int | None) -> None:
    k = 1000 if group != 20 else 20  # a group of the whole row may end within a block
    weight = IntegerWeight(torch.zeros(1, k, dtype=torch.uint8), *2 * (torch.ones(1, 1),), 4, group, True)
    assert block_of(weight) == block
