"""A whole denoiser of DiT-XL/2's size beside other runtimes: `python benchmarks/endtoend.py --output FILE.json`.

Our files (4-bit weights, int8 activations, made by this project's quantization and export) run through
`compress.onnx.session`; peers start from the float32 ONNX of the same model. Everything big lies in the --work folder.

    python benchmarks/endtoend.py --quick --output runs/endtoend.json
    python -m benchmarks.endtoend --blocks 28 --reuse --output reports/endtoend.json
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.denoiser.artefacts import Recipe
from benchmarks.denoiser.contestants import Contestant, contestants
from benchmarks.denoiser.measure import Plan, measure
from benchmarks.denoiser.model import ALL_BLOCKS, LAYERS_TEXT, TOKENS, adapter_of, parameters
from benchmarks.denoiser.render import Measured, markdown
from benchmarks.kernels import machine
from benchmarks.peers.ours import peak_gops
from compress.errors import CompressError
from compress.files import write_text_atomically

_QUICK_BLOCKS = 1  # more do not fit into a minute


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python benchmarks/endtoend.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--quick", action="store_true", help="one block, three rounds, fewer peers")
    found.add_argument("--output", type=Path, default=Path("runs/benchmarks/endtoend.json"), metavar="FILE.json")
    found.add_argument("--blocks", type=int, help=f"by default {ALL_BLOCKS}, DiT-XL/2's; {_QUICK_BLOCKS} with --quick")
    found.add_argument("--batch", type=int, default=2)
    found.add_argument("--providers", nargs="+", default=[], metavar="NAME", help="by default all")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--rounds", type=int, help="by default 9; 3 with --quick")
    found.add_argument("--calls", type=int, default=1, help="timed calls of a round")
    found.add_argument("--settle", type=float, default=0.2, metavar="SECONDS", help="pause before every turn")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--work", type=Path, default=Path("runs/benchmarks/endtoend"), help="folder of the model files")
    found.add_argument("--reuse", action="store_true", help="take model files that an earlier run left in --work")
    return found


_QUICK_PROVIDERS = ("compress", "ort_fp32", "openvino_bf16", "compress_stock")


def command_text(given: argparse.Namespace) -> str:
    """The command without local folders."""
    parts = ["python benchmarks/endtoend.py", *(["--quick"] if given.quick else []), f"--blocks {given.blocks}"]
    parts += [f"--batch {given.batch} --threads {given.threads} --rounds {given.rounds} --calls {given.calls}"]
    parts += [f"--seed {given.seed}", *([f"--providers {' '.join(given.providers)}"] if given.providers else [])]
    return " ".join(parts)


def run(given: argparse.Namespace, chosen: tuple[Contestant, ...]) -> Measured:
    """Make, open, time and profile."""
    torch.set_num_threads(given.threads)
    folder = (given.work / f"dit-{given.blocks}-blocks-batch-{given.batch}-seed-{given.seed}").resolve()
    recipe = Recipe(folder, given.blocks, given.batch, given.seed)
    adapter = adapter_of(folder / "config", given.blocks)
    model: dict[str, Any] = {"name": "DiT-XL/2 with random weights", "blocks": given.blocks, "batch": given.batch}
    model |= {"tokens": TOKENS, "parameters": parameters(adapter), "layers": LAYERS_TEXT}
    settings = {"threads": given.threads, "rounds": given.rounds, "calls": given.calls, "seed": given.seed}
    measured = Measured(command_text(given), machine(), settings | {"settle_seconds": given.settle}, model)
    plan = Plan(
        given.threads, given.rounds, given.calls, given.settle, given.reuse, given.threads if given.quick else 1
    )
    before = peak_gops(given.threads)
    measured.found = measure(chosen, recipe, plan, lambda line: print(line, flush=True))
    measured.peaks = [peak for peak in (before, peak_gops(given.threads)) if peak is not None]
    measured.finish()
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; the exit status is 2 for a wrong command line."""
    given = parser().parse_args(arguments)
    for name in ("torchao", "torch.utils._pytree", "diffusers"):  # they announce what they lack when diffusers loads
        logging.getLogger(name).setLevel(logging.ERROR)
    given.blocks = given.blocks or (_QUICK_BLOCKS if given.quick else ALL_BLOCKS)
    given.rounds = given.rounds or (3 if given.quick else 9)
    try:
        chosen = contestants(given.providers or (_QUICK_PROVIDERS if given.quick else ()))
        measured = run(given, chosen)
    except CompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(given.output, json.dumps(measured.to_json(), indent=1) + "\n")
    write_text_atomically(given.output.with_suffix(".md"), markdown(measured))
    print(f"{given.output.with_suffix('.md')}: {len(measured.found.rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
