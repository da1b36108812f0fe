"""`python -m benchmarks.tables NAME`: measure a table, or go on measuring it; reports/tables/NAME.{json,md} results."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.tables import calibrated, nearest
from benchmarks.tables.measured import Measured
from benchmarks.tables.render import to_json, to_markdown
from benchmarks.tables.runner import Options, run_table, tasks
from benchmarks.tables.table import Table
from compress.engine.fingerprint import code_hash, versions
from compress.evaluate.machine import machine_facts
from compress.files import write_text_atomically

TABLES: dict[str, Table] = {table.name: table for table in (nearest.TABLE, calibrated.TABLE)}
ROOT = Path(__file__).parents[2]


def write(measured: Measured, folder: Path) -> None:
    """Write both files of a table, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / f"{measured.table.name}.json", to_json(measured))
    write_text_atomically(folder / f"{measured.table.name}.md", to_markdown(measured))


def facts() -> Mapping[str, Any]:
    """What the numbers were measured with."""
    machine = machine_facts()
    wanted = {name: machine[name] for name in ("cpu", "cores", "memory_gb") if name in machine}
    libraries = {name: versions()[name] for name in ("torch", "diffusers")}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, "commit": commit(), "code": code_hash()[:12], **wanted, **libraries}


def commit() -> str:
    """Short hash of the commit, with a plus sign when the code differs from it; `unknown` without git."""
    place = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*place, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*place, "status", "--porcelain", "--", "compress", "benchmarks"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.tables", description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--output", type=Path, help="folder; reports/tables by default, with --only one in the cache")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "tables", help="folder of finished work")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cells to measure, by name")
    parser.add_argument(
        "--no-headlines", action="store_true", help="leave class accuracy and Fréchet distance for later"
    )
    parser.add_argument(
        "--minutes", type=float, help="stop at the first finished piece of work after so long; the rest stays missing"
    )
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    given = parser.parse_args(arguments)
    table = TABLES[given.table]
    options = Options(given.cache, given.jobs, given.threads, only=tuple(given.only), headlines=not given.no_headlines)
    work = tasks(table, options)
    if not work:
        parser.error(f"no cell of {table.name} fits {' or '.join(given.only)}; --list shows their names")
    if given.list:
        print("\n".join(task.name for task in work))
        return 0
    measured = Measured(table, options.protocol, facts={**facts(), "processes": given.jobs, "threads": given.threads})
    beginning = given.cache / "unfinished"
    start = time.monotonic()
    with closing(run_table(table, options, lambda line: print(line, flush=True))) as pieces:
        for task, done in pieces:
            measured.take(task, done)
            write(measured, beginning)
            if given.minutes is not None and time.monotonic() - start >= 60 * given.minutes:
                break  # closing waits for what is running, which the next run finds
    # A part of a table must not replace a whole one.
    folder = given.output or (beginning if given.only else ROOT / "reports" / "tables")
    write(measured, folder)
    print(f"{folder / table.name}.md: {len(measured.ranked())} of {len(table.cells)} cells")
    for finding in measured.findings():
        if finding.holds == "no":
            print(f"does not hold: {finding.statement} ({finding.evidence})")
    return 1 if measured.failures else 0


if __name__ == "__main__":
    sys.exit(main())
