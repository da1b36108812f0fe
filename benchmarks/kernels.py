"""Our operators beside those of other libraries: `python benchmarks/kernels.py --output reports/kernels.json`.

All providers of a case run in this process, in turns, with the same number of threads, on the same random input. Their
thread pools share the cores: a pause before each turn lets the threads of the one before fall asleep (those of
onnxruntime never spin here, those of torch and OpenVINO do for a moment). Layers are built once per weight; then every
provider's output is compared with the float32 layer's, and ours with the reference backend's, so that one that computes
something else is noticed. JSON and Markdown are written after every case.

    python benchmarks/kernels.py --quick --output runs/kernels.json
    python -m benchmarks.kernels --only 'qmatmul/flux/*' --providers compress ort_fp32 --output runs/flux.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.operators.cases import Case, Shape, cases
from benchmarks.operators.measure import available, measure
from benchmarks.operators.render import Measured, markdown
from benchmarks.operators.timing import Budget
from benchmarks.peers import Provider, providers
from benchmarks.peers.ours import peak_gops
from compress.errors import CompressError
from compress.evaluate.machine import machine_facts
from compress.files import write_text_atomically

_PEERS = ("openvino", "nncf", "torchao")
_QUICK = Budget(rounds=3, seconds=0.06, settle=0.005)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python benchmarks/kernels.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--quick", action="store_true", help="two layers, few rounds: under a minute")
    found.add_argument("--output", type=Path, default=Path("runs/benchmarks/kernels.json"), metavar="FILE.json")
    found.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="cases, e.g. 'qmatmul/dit*/m256'")
    found.add_argument("--providers", nargs="+", default=[], metavar="NAME", help="by default all")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--budget", type=float, default=0.5, metavar="SECONDS", help="of every provider on every case")
    found.add_argument("--settle", type=float, default=0.01, metavar="SECONDS", help="pause before every turn")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--list", action="store_true", help="print the cases and end")
    return found


def machine() -> dict[str, Any]:
    """Facts about the machine, and the versions of the peers."""
    versions: dict[str, str | None] = {}
    for package in _PEERS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return machine_facts() | versions


def command_text(given: argparse.Namespace) -> str:
    """The command without local folders."""
    parts = ["python benchmarks/kernels.py"]
    parts += ["--quick"] if given.quick else [f"--rounds {given.rounds} --budget {given.budget:g}"]
    parts += [f"--threads {given.threads} --seed {given.seed}"]
    parts += [f"--only {' '.join(map(repr, given.only))}"] if given.only else []
    parts += [f"--providers {' '.join(given.providers)}"] if given.providers else []
    return " ".join(parts)


def run(given: argparse.Namespace, work: list[Case]) -> Measured:
    """Measure the cases; the JSON file is complete after each of them."""
    torch.set_num_threads(given.threads)
    budget = _QUICK if given.quick else Budget(given.rounds, given.budget, given.settle)
    settings = {"threads": given.threads, "seed": given.seed, "quick": given.quick}
    settings |= {"rounds": budget.rounds, "budget_seconds": budget.seconds, "settle_seconds": budget.settle}
    found = Measured(command_text(given), machine(), settings)
    usable = {
        kind: available(providers(kind, given.providers), found.left_out, given.quick)
        for kind in dict.fromkeys(case.shape.kind for case in work)
    }
    found.notes = {p.label: p.note for chosen in usable.values() for p in chosen if p.note}

    def choose(shape: Shape) -> tuple[Provider, ...]:
        return usable[shape.kind]

    _measure_peak(found, given.threads)
    measured = measure(
        work, choose, budget, found.left_out, seed=given.seed, threads=given.threads, say=lambda line: print(line)
    )
    for index, rows in enumerate(measured):
        found.rows += rows
        if index + 1 in (len(work) // 2, len(work)):
            _measure_peak(found, given.threads)
        write(found, given.output)
    return found


def _measure_peak(found: Measured, threads: int) -> None:
    peak = peak_gops(threads)
    if peak is not None:
        found.peaks.append(peak)


def write(found: Measured, output: Path) -> None:
    """FILE.json and FILE.md."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(output, json.dumps(found.to_json(), indent=1) + "\n")
    write_text_atomically(output.with_suffix(".md"), markdown(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; the exit status is 2 for a wrong command line, 1 if an output was wrong."""
    found = parser()
    given = found.parse_args(arguments)
    work = cases(given.quick, tuple(given.only))
    if not work:
        found.error(f"no case fits {' '.join(given.only)}; --list shows them all")
    if given.list:
        print("\n".join(case.name for case in work))
        return 0
    try:
        measured = run(given, work)
    except CompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{given.output.with_suffix('.md')}: {len(measured.rows)} rows")
    return 1 if any(row.suspicious for row in measured.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
