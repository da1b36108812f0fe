"""What is known of a table so far, and what follows from it: missing cells, verdicts, findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables.runner import Done, Task
from benchmarks.tables.table import Cell, Finding, Result, Results, Table
from compress.errors import RunError
from compress.evaluate.protocol import Protocol
from compress.evaluate.within_noise import NoiseVerdict, within_noise
from compress.report.model import Metric


@dataclass
class Measured:
    """A table and what is known of it so far.

    Attributes:
        results: cells by (section, row, column).
        full: metrics of full precision by section.
        failures: why a task found nothing, by its name.
        models: hash of each section's original model.
        seconds: of all finished tasks together, when they were measured.
        facts: machine, versions, commit.
    """

    table: Table
    protocol: Protocol
    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    full: dict[str, list[Metric]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, task: Task, done: Done) -> None:
        """Enter what a task found.

        Raises:
            RunError: the section's model is not the one that earlier tasks measured.
        """
        if done.found is None:
            self.failures[task.name] = done.failure
            return
        if self.models.setdefault(task.section, done.found.model) != done.found.model:
            raise RunError(f"{task.section}: the model changed while it was measured", hint="measure the table again")
        self.seconds += done.found.seconds
        if task.cell is None:
            self.full.setdefault(task.section, []).extend(done.found.metrics)
            return
        place, seed = key(task.cell), task.cell.seed
        before, new = self.results.get(place, Result(())), tuple(done.found.metrics)
        if seed:
            repeats = {**before.repeats, seed: (*before.repeats.get(seed, ()), *new)}
            self.results[place] = before._replace(repeats=repeats)
        else:
            self.results[place] = before._replace(metrics=(*before.metrics, *new))

    def ranked(self) -> Results:
        """The cells whose ranking metrics are there."""
        return {place: result for place, result in self.results.items() if result.find("noise_error") is not None}

    def findings(self) -> list[Finding]:
        """The table's own statements, checked on the cells at hand."""
        return self.table.findings(self.ranked()) + self._within_noise()

    def _within_noise(self) -> list[Finding]:
        """Per section: whether every judged headline row of the columns that the table names is within noise."""
        found = []
        for section in self.table.sections:
            judged: dict[str, NoiseVerdict] = {}
            for cell in self.table.cells:
                if cell.section == section and cell.headline and cell.column in self.table.within_noise:
                    verdicts = {name: self.verdict(cell, name) for name in JUDGED}
                    judged |= {f"{cell.row} {JUDGED[name]}": v for name, v in verdicts.items() if v is not None}
            if judged:
                outside = [name for name, verdict in judged.items() if not verdict.within]
                columns = " and ".join(self.table.within_noise)
                evidence = f"{len(judged) - len(outside)} of {len(judged)} are"
                evidence += f"; not {', '.join(outside)}" if outside else ""
                statement = f"{section}: every method's {columns} is within noise on the headline metrics"
                found.append(Finding(statement, "no" if outside else "yes", evidence))
        return found

    def missing(self) -> list[str]:
        """Names of the cells that have no ranking yet."""
        return [cell.name for cell in self.table.cells if not self.is_ranked(cell)]

    def is_ranked(self, cell: Cell) -> bool:
        """Whether the cell's ranking metrics are there, at its seed."""
        result = self.results.get(key(cell), Result(()))
        metrics = result.repeats.get(cell.seed, ()) if cell.seed else result.metrics
        return Result(metrics).find("noise_error") is not None

    def full_values(self, section: str, name: str) -> list[float]:
        """Values of a full-precision metric at every seed it was measured at."""
        return [m.value for m in self.full.get(section, []) if m.name == name and set(m.labels) == {"seed"}]

    def verdict(self, cell: Cell, difference: str) -> NoiseVerdict | None:
        """Whether the cell's `difference` (a key of JUDGED) is within noise; None while something is unmeasured."""
        result, values = self.results.get(key(cell)), self.full_values(cell.section, JUDGED[difference])
        metric = None if result is None else result.find(difference)
        if metric is None or len(values) < self.protocol.seeds:
            return None
        return within_noise(metric.value, (metric.spread["ci95_low"], metric.spread["ci95_high"]), values)


JUDGED = {"class_accuracy_drop": "class_accuracy", "frechet_increase": "frechet_distance"}
"""Differences that are judged against noise, and the full-precision metric whose spread over seeds judges them."""


def key(cell: Cell) -> tuple[str, str, str]:
    """Where a cell's result is kept."""
    return (cell.section, cell.row, cell.column)
