"""A table as data: cells that are recipes, what names them, and what must hold among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from compress.report.model import Metric


@dataclass(frozen=True)
class Cell:
    """One compressed model of a table.

    Attributes:
        section: which part of the table (the model); row, column: its place there. Together they are the cell's name.
        stages: the `stages:` of a recipe.
        headline: also draw images enough for class accuracy and the Fréchet distance.
    """

    section: str
    row: str
    column: str
    stages: tuple[Mapping[str, Any], ...]
    headline: bool = False

    @property
    def name(self) -> str:
        return f"{self.section}/{self.row}/{self.column}"


class Result(NamedTuple):
    """What was measured of a cell."""

    metrics: tuple[Metric, ...]

    def find(self, name: str, **labels: str) -> Metric | None:
        """The compressed model's metric with exactly these labels."""
        return next(
            (m for m in self.metrics if m.name == name and m.labels == labels and m.artefact == "checkpoint"), None
        )

    def value(self, name: str, **labels: str) -> float:
        """The metric's value. Raises KeyError when it was not measured."""
        metric = self.find(name, **labels)
        if metric is None:
            raise KeyError(f"{name} {labels}")
        return metric.value


Verdict = Literal["yes", "within intervals", "no"]


class Finding(NamedTuple):
    """A statement about a whole table, and whether the measured cells bear it out.

    `within intervals`: an order is turned round somewhere, but only between values whose 95 % intervals overlap.
    """

    statement: str
    holds: Verdict
    evidence: str


Results = Mapping[tuple[str, str, str], Result]
"""Finished cells by (section, row, column)."""


def no_findings(results: Results) -> list[Finding]:
    """For tables that state nothing."""
    return []


@dataclass(frozen=True)
class Table:
    """A table to measure.

    Attributes:
        sections: model sources by section name.
        findings: statements to check once cells are there; unfinished cells are absent from its argument.
    """

    name: str
    title: str
    note: str
    sections: Mapping[str, str]
    cells: tuple[Cell, ...]
    findings: Callable[[Results], list[Finding]] = no_findings

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        twice = sorted({name for name in names if names.count(name) > 1})
        unknown = sorted({cell.section for cell in self.cells} - set(self.sections))
        if twice or unknown:
            raise ValueError(f"table {self.name}: cells named twice {twice}, unknown sections {unknown}")

    def rows(self, section: str) -> list[str]:
        """Row names of a section, in order of definition."""
        return list(dict.fromkeys(cell.row for cell in self.cells if cell.section == section))

    def columns(self, section: str) -> list[str]:
        """Column names of a section, in order of definition."""
        return list(dict.fromkeys(cell.column for cell in self.cells if cell.section == section))
