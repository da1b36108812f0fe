"""Bytes, scales and values of every format against files made by another implementation (numpy scalars, ml_dtypes)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import FORMATS, WeightSpec, get_format, quantize_dequantize, quantize_weight

GOLDEN = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("golden/*.json"))}
WEIGHTS = [(name, i) for name, golden in GOLDEN.items() for i in range(len(golden["weights"]))]
ACTIVATIONS = [(name, i) for name, golden in GOLDEN.items() for i in range(len(golden["activations"]))]


def test_every_format_has_a_golden_file() -> None:
    assert set(GOLDEN) == set(FORMATS)


@pytest.mark.parametrize(("name", "i"), WEIGHTS)
def test_weight_bytes(name: str, i: int) -> None:
    case: dict[str, Any] = GOLDEN[name]["weights"][i]
    spec = WeightSpec(name, case["granularity"], case["group"], case["symmetric"], case["scale_dtype"])
    weight = torch.tensor(GOLDEN[name]["weight"])
    q = quantize_weight(weight, spec)
    bytewise = q.scales.dtype == torch.float8_e4m3fn
    assert (q.scales.view(torch.uint8) if bytewise else q.scales).tolist() == case["scales"]
    assert (None if q.global_scale is None else q.global_scale.tolist()) == case.get("global_scale")
    assert (None if q.zero_points is None else q.zero_points.tolist()) == case["zero_points"]
    assert [" ".join(bytes(block.tolist()).hex() for block in row) for row in q.codes] == case["codes"]
    assert torch.equal(q.dequantize(), torch.tensor(case["decoded"]))


@pytest.mark.parametrize(("name", "i"), ACTIVATIONS)
def test_activation_values(name: str, i: int) -> None:
    case = GOLDEN[name]["activations"][i]
    zero = None if case["zero_point"] is None else torch.tensor(float(case["zero_point"]))
    y = quantize_dequantize(torch.tensor(case["x"]), get_format(name), torch.tensor(case["scale"]), zero)
    assert y.tolist() == case["values"]


@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if "table" in golden])
def test_tables(name: str) -> None:
    table = get_format(name).table()
    assert table is not None
    assert table.tolist() == GOLDEN[name]["table"]
