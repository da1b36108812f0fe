"""What a compressed model still computes in floating point, as a table of the report and as one line of the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from compress.evaluate.operations import LayerOperations
from compress.models.float_operators import OperatorFacts, OperatorKind
from compress.quantize.attention import AttentionSettings
from compress.recipe.model import Recipe
from compress.recipe.plan import Plan, PlannedLayer
from compress.report.model import Table
from compress.stages.quantize import Quantize

_FLOAT_BITS = 32
_INTEGER_SOFTMAX = 8  # bits up to which the softmax's output is multiplied as integers
_Row = tuple[str, str, int, int]  # operator, types, count, MACs


def quantized_attention(recipe: Recipe) -> AttentionSettings | None:
    """How the recipe quantizes attention's products; None where it leaves them in floating point."""
    found = [stage.attention for stage in recipe.stages if isinstance(stage, Quantize)]
    return next((settings for settings in found if settings is not None), None)


def attention_operations(plan: Plan) -> list[LayerOperations]:
    """Attention's two products with their operands' bits, and products outside layers that are neither."""
    settings, bits = quantized_attention(plan.recipe), dict.fromkeys(OperatorKind, (_FLOAT_BITS, _FLOAT_BITS))
    if settings is not None:
        bits[OperatorKind.QUERY_KEY] = (settings.bits, settings.bits)
        bits[OperatorKind.WEIGHT_VALUE] = (settings.bits, settings.softmax_bits)
    return [LayerOperations(str(facts.kind), facts.macs, *bits[facts.kind]) for facts in _products(plan)]


def float_table(plan: Plan) -> Table:
    """Operators in floating point of one forward of one sample: layers, then what is outside of layers."""
    rows = _rows(plan)
    note = (
        f"One forward of one sample. {_share(plan, rows):.1f} % of its multiply-accumulates are in floating point. "
        "Published results of equal bits differ in what they leave out: compare like with like."
    )
    columns = ["operator", "types", "count", "MACs"]
    cells: list[list[str | float | int | None]] = [[*row[:3], row[3] or None] for row in rows]
    return Table(title="Operators in floating point", columns=columns, rows=cells, note=note)


def float_line(plan: Plan) -> str:
    """The same in a line: `1.3 % of MACs: 2 layers kept, 46 normalization, …`."""
    rows = _rows(plan)
    return f"{_share(plan, rows):.1f} % of MACs: " + ", ".join(f"{count} {name}" for name, _, count, _ in rows)


def _rows(plan: Plan) -> list[_Row]:
    kept = [row for row in plan.layers if row.formats == "kept"]
    decoded = [row for row in plan.layers if row.formats != "kept" and row.act_bits == _FLOAT_BITS]
    rows = [
        *_layers("layers kept", kept, (row.role for row in kept)),
        *_layers("layers with inputs in floating point", decoded, (row.formats for row in decoded)),
    ]
    settings = quantized_attention(plan.recipe)
    for facts in plan.final.operators:
        if settings is None or facts.kind not in (OperatorKind.QUERY_KEY, OperatorKind.WEIGHT_VALUE):
            rows.append((str(facts.kind), _types(facts.types), facts.count, facts.macs))
        elif facts.kind is OperatorKind.WEIGHT_VALUE and settings.softmax_bits > _INTEGER_SOFTMAX:
            types = f"codes of {settings.softmax_bits} by {settings.bits} bits, multiplied in float32"
            rows.append((str(facts.kind), types, facts.count, facts.macs))
    return rows


def _share(plan: Plan, rows: list[_Row]) -> float:
    """Per cent of the forward's multiply-accumulates that are in these rows."""
    return 100 * sum(row[3] for row in rows) / plan.final.macs if plan.final.macs else 0.0


def _layers(name: str, layers: list[PlannedLayer], types: Iterable[str]) -> list[_Row]:
    return [(name, _types(Counter(types)), len(layers), sum(row.macs for row in layers))] if layers else []


def _types(counts: dict[str, int]) -> str:
    """`GroupNorm x46, LayerNorm x3`."""
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def _products(plan: Plan) -> list[OperatorFacts]:
    return [facts for facts in plan.final.operators if facts.macs]
