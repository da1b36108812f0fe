"""Parity of the ONNX model with the checkpoint (ARCHITECTURE section 4), measured in every run that exports one."""

from __future__ import annotations

from compress.export.parity import OPERATOR_LIMIT, Parity, check_parity
from compress.models.adapter import DenoiserInputs
from compress.report.model import Metric, Table
from compress.stages.evaluate.bank import stored_pairs
from compress.stages.evaluate.base import EvaluationContext, Findings

PAIRS = 32


def run(context: EvaluationContext) -> Findings:
    """`onnx_error` of one forward on the sampler's own inputs, and of every operator on the inputs it met there."""
    reference, checkpoint, onnx = (context.subjects[name] for name in ("reference", "checkpoint", "onnx"))
    assert reference.load is not None and checkpoint.load is not None
    pairs = stored_pairs(context, PAIRS)
    inputs = DenoiserInputs(pairs.sample, pairs.t, pairs.condition)
    found = check_parity(context.adapter, checkpoint.load(), onnx.folder, inputs, original=reference.load())
    return Findings(metrics=_metrics(found, context.seed), tables=[_table(found)])


def _metrics(found: Parity, seed: int) -> list[Metric]:
    errors = {"": found.onnx_error, "worst operator": found.worst_operator.error if found.worst_operator else 0.0}
    return [
        Metric(
            name="onnx_error", value=value, n=PAIRS, seed=seed, artefact="onnx", labels={"of": label} if label else {}
        )
        for label, value in errors.items()
    ]


def _table(found: Parity) -> Table:
    worst = found.worst_operator
    rows: list[list[str | float | int | None]] = [
        ["one forward against the checkpoint", found.onnx_error, found.limit],
        [f"worst of {len(found.operators)} operator calls", worst.error if worst else None, OPERATOR_LIMIT],
    ]
    note = "Relative errors. The limit of a forward is half of the checkpoint's own quantization noise. "
    note += "Kept." if found.passed else f"NOT KEPT; the worst operator is {worst.layer if worst else 'none'}."
    return Table(title="ONNX parity", columns=["what", "relative error", "limit"], rows=rows, note=note)
