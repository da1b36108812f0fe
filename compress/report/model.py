"""The report as data: metrics with unit, n, seed, spread and the artefact they were measured on (schema version 1)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

REPORT_SCHEMA = 1
Artefact = Literal["reference", "checkpoint", "onnx"]


class Data(BaseModel):
    """What every part of a report shares: it cannot be changed, and unknown keys are errors."""

    # An infinite psnr is a legitimate value; JSON has no word for it, so it travels as the string "Infinity".
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Metric(Data):
    """One measured number. The main value of a metric has empty `labels`; a band or category carries its own."""

    name: str
    value: float
    unit: str = ""
    n: int = 1
    seed: int | None = None
    spread: dict[str, float] = Field(default_factory=dict, description="e.g. {ci95_low, ci95_high} or {q1, q3}")
    artefact: Artefact
    labels: dict[str, str] = Field(default_factory=dict)


class Table(Data):
    """A table for people: per-layer plan, bytes by tensor class, noise floor.

    `kind` lets the renderers place it: `layers` scrolls, `bytes` (first column the tensor class, then one column of
    bytes an artefact; `compress.report.tables.bytes_table` builds it) is drawn as a stacked bar.
    """

    kind: Literal["table", "layers", "bytes", "noise_floor"] = "table"
    title: str
    columns: list[str]
    rows: list[list[str | float | int | None]]
    note: str = ""


class Figure(Data):
    """An image for people, embedded: PNG bytes in base64. Figures of one `group` are shown as rows that line up."""

    group: str = ""
    title: str
    png_base64: str
    note: str = ""


class GateResult(Data):
    """A bound of the recipe against the value measured; `value` is None when nothing measured it (that fails too)."""

    metric: str
    artefact: Artefact
    labels: dict[str, str] = Field(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    value: float | None
    passed: bool
    message: str


class StageRecord(Data):
    """What one stage did: its kind, settings, seconds, and facts it wants shown."""

    kind: str
    settings: dict[str, object]
    seconds: float
    cached: bool = False
    facts: dict[str, str | float | int | None] = Field(default_factory=dict)


class Report(Data):
    """Everything that one run found out."""

    schema_version: int = REPORT_SCHEMA
    name: str
    created: str = Field(description="UTC time, ISO 8601")
    compress_version: str
    recipe: dict[str, object]
    model: dict[str, str | float | int | None]
    machine: dict[str, str | float | int | None]
    stages: list[StageRecord]
    metrics: list[Metric]
    tables: list[Table]
    figures: list[Figure]
    gates: list[GateResult]
    warnings: list[str] = Field(default_factory=list)

    def find(self, name: str, artefact: Artefact, **labels: str) -> Metric | None:
        """The metric with exactly these labels, or None."""
        wanted = (name, artefact, labels)
        return next((m for m in self.metrics if (m.name, m.artefact, m.labels) == wanted), None)
