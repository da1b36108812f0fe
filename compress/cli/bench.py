"""`compress bench`: the latency table of a run's artefacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli.console import print_json, size_text, text_table

if TYPE_CHECKING:
    from compress.engine.bench import Bench


def bench(
    run: Annotated[Path, typer.Argument(help="The output folder of a run.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per call.")] = 16,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of PyTorch and onnxruntime.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Timed calls of each.")] = 20,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in a process of its own for each.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Latency and memory of a run's artefacts, interleaved with the original in PyTorch and onnxruntime."""
    from compress.engine.bench import BenchSettings, bench_run

    settings = BenchSettings(batch=batch, threads=threads, rounds=rounds, memory=memory)
    found = bench_run(run, settings, lambda text: print(text, file=sys.stderr))
    if json:
        print_json(found.as_dict())
    else:
        _print_bench(found)
    return 0


def _print_bench(found: Bench) -> None:
    rows = [
        (
            row.artefact,
            row.runtime,
            f"{row.median_ms:.1f}",
            f"{row.q1:.1f} to {row.q3:.1f}",
            f"{row.speedup:.2f}x",
            size_text(row.bytes),
            "" if row.peak_mb is None else size_text(row.peak_mb * 1e6),
        )
        for row in found.rows
    ]
    columns = ["artefact", "runs in", "ms a call", "quartiles", "speed-up", "size", "peak memory"]
    print(text_table(columns, rows, right=(2, 3, 4, 5, 6)))
    s = found.settings
    print(
        f"\n{found.name}: batch {s.batch}, {s.threads} threads, {s.rounds} interleaved rounds on "
        f"{found.machine['cpu']}; speed-up over the original in PyTorch."
    )
