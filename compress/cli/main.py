"""The `compress` command: parsing and printing only. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import typer

from compress.cli import bench, catalogue, jobs, models
from compress.errors import CompressError

app = typer.Typer(
    name="compress",
    help="Make pretrained diffusion models small and fast after training, and prove what it cost in quality.\n\n"
    "Exit codes: 0 done, all gates met; 1 a gate was missed; 2 the recipe or the command line is wrong; "
    "3 it failed while running; 4 above the memory budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _exits(command: Callable[..., int | None]) -> Callable[..., None]:
    """The command as typer wants it: its exit code raised, an interruption told from a missed gate."""

    @wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            code = command(*arguments, **options)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            code = 3
        if code:
            raise typer.Exit(code)

    return wrapped


_COMMANDS: tuple[Callable[..., int | None], ...] = (
    *(jobs.run, jobs.check, models.inspect, models.sample, models.evaluate, models.export, bench.bench, jobs.compare),
    *(catalogue.methods, catalogue.formats, catalogue.zoo, catalogue.schema),
)
for command in _COMMANDS:
    app.command()(_exits(command))


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show tracebacks; may stand anywhere.")) -> None:
    """Options of every command; `main` reads them before typer does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits with its documented code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        app(args=arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Print one sentence for an error; returns the exit code."""
    text, code = f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", 3
    if isinstance(error, CompressError):
        text, code = str(error), error.exit_code
    elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        text, code = f"out of memory: {error}", 4
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
