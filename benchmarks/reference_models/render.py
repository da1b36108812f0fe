"""The Markdown of the reference models."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from benchmarks.reference_models.measure import SCORES, OverSeeds, ReferenceModels, Run, grid_name
from compress.report.markdown import table
from compress.report.model import Metric
from compress.report.numbers import decimals_for, fact_texts, plain, seconds_text, shown


def markdown(found: ReferenceModels) -> str:
    """The report for people."""
    return "\n\n".join(_parts(found)) + "\n"


def _parts(found: ReferenceModels) -> Iterator[str]:
    first = found.runs[0]
    yield "# Reference models"
    yield textwrap.fill(
        "The bundled models before anything is compressed: float16 weights, float32 arithmetic. Images are drawn with "
        f"{first.sampler} and guidance {first.guidance:g}, classes in turn, image i from the noise of (seed, i). Class "
        "accuracy is the share that the bundled classifier takes for the class asked for. Distances are between its "
        "features of these images and of the test digits; they compare at equal n only.",
        120,
    )
    yield f"    {found.command}"
    yield "## Over seeds\n\nMean ± standard deviation over seeds."
    yield _table(
        ["model", "steps", "images", "seeds", *SCORES.values()],
        [
            [s.model, f"{s.steps}", f"{s.n:,}", f"{len(s.seeds)}", *map(_over_seeds_text, s.over_seeds)]
            for s in found.summaries
        ],
    )
    yield "## Real digits\n\nWhat real digits score: the floor of a distance at its n."
    yield _table(["digits", "against", "n", "metric", "value"], [_floor_row(metric) for metric in found.floors])
    yield "## Samples\n\nThe first images of the first seed, one column a class."
    for model in dict.fromkeys(run.model for run in found.runs):
        image = grid_name(model, max(run.steps for run in found.runs))
        yield f"![{model}, {first.sampler}](images/{image})"
    yield "## Class accuracy by class\n\nAll seeds together."
    yield _by_class(found.runs)
    yield "## Runs\n\nIn brackets: 95 % intervals; for KID, the standard deviation over its subsets around it."
    yield _table(
        ["model", "steps", "seed", "images", *SCORES.values(), "bootstrap sd of Fréchet", "sampling", "threads"],
        [_run_row(run) for run in found.runs],
    )
    facts = ", ".join(f"{name} {value}" for name, value in fact_texts(found.machine))
    yield "## Machine\n\n" + textwrap.fill(f"{facts}.", 120, break_on_hyphens=False)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table of one name column and numbers."""
    return table(head, rows, range(1, len(head))).rstrip()


def _over_seeds_text(found: OverSeeds) -> str:
    if found.sd is None:
        return plain(found.mean)
    decimals = decimals_for(found.mean, found.sd)
    return f"{plain(found.mean, decimals)} ± {plain(found.sd, decimals)}"


def metric_text(metric: Metric) -> str:
    """A value, and its interval in brackets."""
    value, spread = shown(metric)
    return f"{value} ({spread})" if spread else value


def _floor_row(metric: Metric) -> list[str]:
    against = metric.labels.get("against", "")
    return [metric.labels["floor"], against, f"{metric.n:,}", SCORES[metric.name], metric_text(metric)]


def _run_row(run: Run) -> list[str]:
    scores = [metric_text(run.find(name)) for name in SCORES]
    std = plain(run.find("frechet_distance").spread["bootstrap_std"])
    where = [seconds_text(run.seconds), f"{run.threads}"]
    return [run.model, f"{run.steps}", f"{run.seed}", f"{run.n:,}", *scores, std, *where]


def _by_class(runs: Sequence[Run]) -> str:
    counts: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    for run in runs:
        row = counts.setdefault((run.model, run.steps), {})
        for metric in run.metrics:
            if metric.name == "class_accuracy" and metric.labels:
                hits, n = row.get(metric.labels["category"], (0, 0))
                row[metric.labels["category"]] = (hits + round(metric.value * metric.n), n + metric.n)
    classes = list(next(iter(counts.values())))
    rows = [
        [model, f"{steps}", *[f"{row[name][0] / row[name][1]:.3f}" for name in classes]]
        for (model, steps), row in counts.items()
    ]
    return _table(["model", "steps", *classes], rows)
