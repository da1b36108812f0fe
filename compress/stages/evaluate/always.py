"""What every run measures without being asked: size, parameters, arithmetic."""

from __future__ import annotations

from compress.evaluate.operations import operation_metrics
from compress.evaluate.size import bits_per_weight, bytes_by_class, size_metrics
from compress.report.model import Artefact, Metric
from compress.report.tables import bytes_table
from compress.stages.evaluate.base import EvaluationContext, Findings


def run(context: EvaluationContext) -> Findings:
    """Sizes of every artefact by tensor class, bits per weight, MACs and BOPs; from headers, no tensor is loaded."""
    original = context.subjects["reference"].folder
    findings = Findings()
    for artefact, subject in context.subjects.items():
        findings.metrics += size_metrics(subject.folder, original, artefact=artefact)
        if artefact in context.operations:
            findings.metrics += operation_metrics(context.operations[artefact], artefact=artefact)
    if context.layer_weights:
        folder = context.subjects["checkpoint"].folder
        bits = bits_per_weight(folder, context.layer_weights)
        findings.metrics.append(Metric(name="bits_per_weight", value=bits, unit="bit", artefact="checkpoint"))
    weights = {name: subject for name, subject in context.subjects.items() if name != "onnx"}
    sizes: dict[Artefact, dict[str, int]] = {name: bytes_by_class(subject.folder) for name, subject in weights.items()}
    findings.tables.append(bytes_table(sizes, note="Of the denoiser's weight files."))
    return findings
