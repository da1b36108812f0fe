"""`compress run | check | compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli.console import count_text, duration_text, parse_size, print_json, size_text, text_table

if TYPE_CHECKING:
    from compress.recipe.plan import Plan

RecipePath = Annotated[Path, typer.Argument(help="recipe.yaml", metavar="RECIPE")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch.")]
Budget = Annotated[str | None, typer.Option("--memory-budget", metavar="SIZE", help="Refuse to take more, e.g. 8GB.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the results; runs/NAME if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Continue what is there, or begin anew.")] = True,
    threads: Threads = None,
    memory_budget: Budget = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder of finished work that runs share.")] = None,
    json: Json = False,
) -> int:
    """Carry out a recipe; exit 1 if a gate is missed. A killed run continues with the same command."""
    from compress.engine.job import run_recipe
    from compress.engine.run import RunOptions
    from compress.recipe.model import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    options = RunOptions(
        output=output or Path("runs") / loaded.recipe.name,
        cache=cache,
        fresh=not resume,
        threads=threads,
        memory_budget=_budget(memory_budget),
        quiet=json,
    )
    outcome = run_recipe(loaded, options)
    report = options.output / "report"
    if json:
        print_json(outcome.report.model_dump(mode="json", exclude={"figures"}))
        return outcome.exit_code
    _print_comparison([options.output])
    for gate in outcome.report.gates:
        print(f"{'met   ' if gate.passed else 'MISSED'}  {gate.message}")
    print(f"\nreport: {report / 'report.html'}")
    return outcome.exit_code


def check(recipe: RecipePath, overrides: Overrides = None, memory_budget: Budget = None, json: Json = False) -> int:
    """Validate a recipe and print its plan: per-layer formats, predicted bytes, memory, time. Loads no weights."""
    from compress.errors import MemoryBudgetError
    from compress.recipe.model import load_recipe
    from compress.recipe.plan import make_plan

    plan = make_plan(load_recipe(recipe, tuple(overrides or ())))
    if json:
        print_json(_plan_data(plan))
    else:
        _print_plan(plan)
    budget = _budget(memory_budget)
    if budget is not None and plan.memory_bytes > budget:
        raise MemoryBudgetError(
            f"the run needs about {size_text(plan.memory_bytes)}, the budget is {size_text(budget)}",
            hint="raise --memory-budget",
        )
    return 0


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Output folders, or report.json files.")],
    output: Annotated[Path | None, typer.Option("--output", help="Also write comparison.{json,md,html} here.")] = None,
    json: Json = False,
) -> int:
    """One table over several runs: quality against size and latency, Pareto front marked."""
    from compress.report.compare import compare as compare_reports
    from compress.report.write import load_report, write_comparison

    comparison = compare_reports([load_report(path) for path in runs])
    if output is not None:
        write_comparison(comparison, output)
    if json:
        print_json(comparison.model_dump(mode="json"))
    else:
        _print_comparison(runs)
        if output is not None:
            print(f"report: {output / 'comparison.html'}")
    return 0


def _print_comparison(runs: list[Path]) -> None:
    from compress.report.compare import compare as compare_reports
    from compress.report.text import comparison_text
    from compress.report.write import load_report

    print(comparison_text(compare_reports([load_report(path) for path in runs])))


def _budget(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory-budget") from error


def _plan_data(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.name,
        "model": plan.original.model,
        "class": plan.original.denoiser_class,
        "layers": [vars(layer) for layer in plan.layers],
        "fp32_bytes": plan.fp32_bytes,
        "predicted_bytes": plan.predicted_bytes,
        "size_ratio": plan.size_ratio,
        "memory_bytes": plan.memory_bytes,
        "seconds": plan.seconds,
        "steps": plan.steps,
        "kernels": plan.kernels,
        "notes": plan.notes,
    }


def _print_plan(plan: Plan) -> None:
    from compress.engine.float_table import float_line

    original = plan.original
    print(
        f"{plan.recipe.name}: {original.model}, {original.denoiser_class} ({original.family} family), "
        f"{count_text(original.parameters)} parameters, {count_text(original.macs)} MACs a forward\n"
    )
    rows = [
        (
            row.name,
            row.role,
            "x".join(map(str, row.shape)),
            row.formats,
            size_text(row.bytes_before),
            size_text(row.bytes_after),
        )
        for row in plan.layers
    ]
    print(text_table(["layer", "role", "shape", "weights · input", "fp32", "planned"], rows, right=(4, 5)))
    print(f"\nsteps       {'; '.join(plan.steps)}")
    print(
        f"size        {size_text(plan.fp32_bytes)} in fp32 -> {size_text(plan.predicted_bytes)}, "
        f"size_ratio {plan.size_ratio:.3f}"
    )
    print(f"memory      about {size_text(plan.memory_bytes)} at the peak")
    print(f"time        about {duration_text(plan.seconds)} of model calls on this machine")
    if plan.kernels:
        print(f"kernels     {plan.kernels}")
    print(f"in float    {float_line(plan)}")
    for note in plan.notes:
        print(f"note        {note}")
