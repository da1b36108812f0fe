"""Parity of the ONNX model with the checkpoint (ARCHITECTURE section 4), measured in every run that exports one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.export.manifest import read_manifest
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
    tables = [_table(found), *stock_tables(read_manifest(onnx.folder).get("layers", []))]
    return Findings(metrics=_metrics(found, context.seed), tables=tables)


def _metrics(found: Parity, seed: int) -> list[Metric]:
    errors = {"": found.onnx_error, "worst operator": found.worst_operator.error if found.worst_operator else 0.0}
    return [
        Metric(
            name="onnx_error", value=value, n=PAIRS, seed=seed, artefact="onnx", labels={"of": label} if label else {}
        )
        for label, value in errors.items()
    ]


def _table(found: Parity) -> Table:
    worst, kernel = found.worst_operator, found.worst_kernel
    rows: list[list[str | float | int | None]] = [
        ["one forward against the checkpoint", found.onnx_error, found.limit],
        [
            f"worst of {len(found.operators)} operator calls",
            worst.error if worst else None,
            worst.limit if worst else OPERATOR_LIMIT,
        ],
    ]
    if found.kernel_error is not None:
        rows.append(["one forward with our kernels", found.kernel_error, found.limit])
    if kernel is not None:
        rows.append([f"worst of {len(found.kernel_operators)} kernel calls", kernel.error, kernel.limit])
    note = "Relative errors. The limit of a forward is half of the checkpoint's own quantization noise. "
    note += "Kept." if found.passed else f"NOT KEPT; the worst operator is {worst.layer if worst else 'none'}."
    return Table(title="ONNX parity", columns=["what", "relative error", "limit"], rows=rows, note=note)


def stock_tables(layers: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What the layers of a stock export became (`layers` of export.json), alike ones in a row; no table without any."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        groups.setdefault((layer["became"], "; ".join(layer["differs"])), []).append(layer["layer"])
    rows: list[list[str | float | int | None]] = [
        [became, len(names), names[0], differs or "nothing"] for (became, differs), names in groups.items()
    ]
    columns = ["became", "layers", "the first of them", "what differs, or is needed"]
    note = "The ONNX file uses operators of a stock onnxruntime only."
    return [Table(title="ONNX with stock operators", columns=columns, rows=rows, note=note)] if rows else []
