"""A table as data: cells that are recipes, what names them, and what must hold among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple

from compress.report.model import Metric


@dataclass(frozen=True)
class Cell:
    """One compressed model of a table.

    Attributes:
        section: which part of the table (the model); row, column: its place there. Together they are the cell's name.
        stages: the `stages:` of a recipe.
        headline: also draw images enough for class accuracy and the Fréchet distance.
        calibration: what the recipe's `calibration:` has otherwise than the table's protocol, `timesteps` for one.
        seed: of the recipe; what is evaluated stays the same. Cells of one place differ in it, and 0 is among them.
        priority: cells with a lower one are measured first.
    """

    section: str
    row: str
    column: str
    stages: tuple[Mapping[str, Any], ...]
    headline: bool = False
    calibration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    priority: int = 0

    @property
    def name(self) -> str:
        return f"{self.section}/{self.row}/{self.column}" + (f" seed {self.seed}" if self.seed else "")


class Result(NamedTuple):
    """What was measured of a cell, with the recipe's seed 0 and, in `repeats`, with others."""

    metrics: tuple[Metric, ...]
    repeats: Mapping[int, tuple[Metric, ...]] = {}

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

    def values(self, name: str, **labels: str) -> list[float]:
        """The metric's value at every seed it was measured at, seed 0 first."""
        seeds = [self, *(Result(metrics) for _, metrics in sorted(self.repeats.items()))]
        found = [seed.find(name, **labels) for seed in seeds]
        return [metric.value for metric in found if metric is not None]

    def mean(self, name: str, **labels: str) -> float:
        """Its mean over the seeds. Raises KeyError when it was not measured."""
        values = self.values(name, **labels)
        if not values:
            raise KeyError(f"{name} {labels}")
        return fmean(values)


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
        baseline: row that the others of its column are compared with, as the share of its noise error they remove.
        within_noise: columns whose headline rows the table states to be within noise.
        band_column: column whose noise error is shown by noise level; by default `channel` or the first.
        headlines_after: headline rows come once the cells up to this priority are ranked.
    """

    name: str
    title: str
    note: str
    sections: Mapping[str, str]
    cells: tuple[Cell, ...]
    findings: Callable[[Results], list[Finding]] = no_findings
    baseline: str = ""
    within_noise: tuple[str, ...] = ()
    band_column: str = ""
    headlines_after: int = 0

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        twice = sorted({name for name in names if names.count(name) > 1})
        unknown = sorted({cell.section for cell in self.cells} - set(self.sections))
        if twice or unknown:
            raise ValueError(f"table {self.name}: cells named twice {twice}, unknown sections {unknown}")
        places = {(cell.section, cell.row, cell.column) for cell in self.cells if cell.seed == 0}
        alone = sorted(cell.name for cell in self.cells if (cell.section, cell.row, cell.column) not in places)
        if alone:
            raise ValueError(f"table {self.name}: cells without a seed 0 beside them: {alone}")

    def rows(self, section: str) -> list[str]:
        """Row names of a section, in order of definition."""
        return list(dict.fromkeys(cell.row for cell in self.cells if cell.section == section))

    def columns(self, section: str) -> list[str]:
        """Column names of a section, in order of definition."""
        return list(dict.fromkeys(cell.column for cell in self.cells if cell.section == section))
