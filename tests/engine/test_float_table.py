"""What a report says is left in floating point."""

from __future__ import annotations

from typing import Any

import pytest

from compress.engine.float_table import attention_operations, float_line, float_table
from compress.engine.job import operations
from compress.evaluate.operations import total_bops
from compress.recipe.model import load_recipe
from compress.recipe.plan import Plan, make_plan

QUERY_KEY, WEIGHT_VALUE = "attention queries with keys", "attention weights with values"
MACS = 3 * 16 * 16 * 16  # three blocks, 16 tokens of width 16


@pytest.fixture
def plan_of(recipe_file: Any) -> Any:
    """The plan of the tiny DiT with a changed quantize stage."""

    def plan(**changes: object) -> Plan:
        stage = {"kind": "quantize", "weights": {"format": "int8"}, "activations": {"format": "int8"}}
        return make_plan(load_recipe(recipe_file(stages=[{**stage, **changes}])))

    return plan


def rows_of(plan: Plan) -> dict[str, tuple[Any, ...]]:
    return {str(name): tuple(cells) for name, *cells in float_table(plan).rows}


def test_attention_is_listed_unless_it_is_quantized(plan_of: Any) -> None:
    rows = rows_of(plan_of())
    assert rows[QUERY_KEY] == rows[WEIGHT_VALUE] == ("attention x3", 3, MACS)
    assert rows["softmax"] == ("softmax x3", 3, None)
    assert rows["normalization"] == ("LayerNorm x7", 7, None)
    assert "layers kept" not in rows and "layers with inputs in floating point" not in rows
    rows = rows_of(plan_of(attention={}))
    assert QUERY_KEY not in rows and WEIGHT_VALUE not in rows and rows["softmax"][1] == 3
    rows = rows_of(plan_of(attention={"softmax_bits": 16}))
    assert QUERY_KEY not in rows
    assert rows[WEIGHT_VALUE] == ("codes of 16 by 8 bits, multiplied in float32", 3, MACS)


def test_layers_that_are_kept_or_decoded_are_counted_by_role_and_format(plan_of: Any) -> None:
    rules = [
        {"role": "in_projection", "keep": True},
        {"role": "time_embedding", "keep": True},
        {"role": "ff_in", "activations": {"format": "none"}},
    ]
    plan = plan_of(rules=rules)
    rows = rows_of(plan)
    kept = [row for row in plan.layers if row.role in ("in_projection", "time_embedding")]
    assert rows["layers kept"] == ("in_projection x1, time_embedding x6", 7, sum(row.macs for row in kept))
    assert rows["layers with inputs in floating point"] == ("int8 channel · float x3", 3, 3 * 16 * 16 * 64)
    table = float_table(plan)
    share = 100 * sum(row[3] or 0 for row in table.rows) / plan.final.macs
    assert 0 < share < 100 and f"{share:.1f} %" in table.note
    assert float_line(plan).startswith(f"{share:.1f} % of MACs: 7 layers kept, 3 layers with inputs")


def test_bit_operations_count_attention_with_its_bits(plan_of: Any) -> None:
    off, on = plan_of(), plan_of(attention={"bits": 4, "softmax_bits": 8})
    assert [row[1:] for row in attention_operations(off)] == [(MACS, 32, 32), (MACS, 32, 32)]
    assert [row[1:] for row in attention_operations(on)] == [(MACS, 4, 4), (MACS, 4, 8)]
    saved = total_bops(operations(off)["checkpoint"]) - total_bops(operations(on)["checkpoint"])
    assert saved == MACS * (2 * 32 * 32 - 4 * 4 - 4 * 8)
    assert total_bops(operations(off)["reference"]) == total_bops(operations(on)["reference"])


def test_layers_that_a_table_replaces_are_no_part_of_the_plan(plan_of: Any) -> None:
    static = {"format": "int8", "granularity": "tensor", "mode": "static"}
    live = plan_of(method={"kind": "tfmq"}, activations=static)
    cached = plan_of(method={"kind": "tfmq", "embeddings": "cached"}, activations=static)
    gone = {row.name: row for row in live.layers if row.name not in {row.name for row in cached.layers}}
    assert gone and all(".timestep_embedder.linear_" in name for name in gone)
    biases = sum(row.shape[0] for row in gone.values())
    weights = sum(row.weights for row in gone.values())
    assert live.final.parameters - cached.final.parameters == weights + biases
    assert live.final.macs - cached.final.macs == sum(row.macs for row in gone.values())
    assert cached.original.parameters == live.original.parameters == live.final.parameters
    assert "layers kept" not in rows_of(cached)
