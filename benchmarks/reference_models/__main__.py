"""How well the bundled models draw: `python -m benchmarks.reference_models digits-dit digits-unet`.

Every model is sampled with every number of steps from several seeds and scored beside real digits. The output folder
gets reference-models.json, reference-models.md and images/NAME-ddimSTEPS.png. Each (model, steps, seed) that is done
stays in the cache folder, so a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference_models.measure import (
    SCORES,
    Model,
    ReferenceModels,
    cached_run,
    floors,
    grid_name,
    summarise,
    write_grid,
)
from benchmarks.reference_models.render import markdown, metric_text
from compress.evaluate.machine import machine_facts
from compress.files import write_text_atomically
from compress.models.zoo.classifier import CLASSIFIERS
from compress.report.numbers import seconds_text

NAME = "reference-models"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.reference_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("models", nargs="+", choices=sorted(CLASSIFIERS))
    found.add_argument("--images", type=int, default=2000, help="of every run")
    found.add_argument("--seeds", type=int, default=5, help="runs of every (model, steps), with seeds from 1")
    found.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    found.add_argument("--guidance", type=float, default=1.5)
    found.add_argument("--batch", type=int, default=64)
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--cache", type=Path, default=Path("runs") / NAME)
    found.add_argument("--output", type=Path, default=Path("reports"))
    return found


def command_text(given: dict[str, Any]) -> str:
    """The command without local folders."""
    steps = " ".join(map(str, given["steps"]))
    return (
        f"python -m benchmarks.reference_models {' '.join(given['models'])} --images {given['images']} "
        f"--seeds {given['seeds']} --steps {steps} --guidance {given['guidance']:g} --batch {given['batch']} "
        f"--threads {given['threads']}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    given = vars(parser().parse_args(arguments))
    if given["seeds"] < 1 or given["images"] < 2:
        parser().error("needs one seed and two images at least")
    given |= {key: list(dict.fromkeys(given[key])) for key in ("models", "steps")}
    torch.set_num_threads(given["threads"])
    models, runs = [Model(name) for name in given["models"]], []
    if len({model.judge_folder for model in models}) > 1:
        parser().error("these models have different judges; floors are of one judge, so score them in separate calls")
    # Seeds outermost: the first seed of every model comes before the second of any.
    for seed in range(1, given["seeds"] + 1):
        for model in models:
            for steps in given["steps"]:
                run = cached_run(given["cache"], model, steps, seed, given["guidance"], given["images"], given["batch"])
                runs.append(run)
                scores = ", ".join(f"{name} {metric_text(run.find(name))}" for name in SCORES)
                print(f"{model.name}, {steps} steps, seed {seed}: {scores}; {seconds_text(run.seconds)}", flush=True)
    for model in models:
        steps = max(given["steps"])
        write_grid(model, steps, given["guidance"], 1, given["output"] / "images" / grid_name(model.name, steps))
    runs.sort(key=lambda run: (given["models"].index(run.model), given["steps"].index(run.steps), run.seed))
    found = ReferenceModels(
        command=command_text(given),
        machine=machine_facts(),
        floors=floors(models[0].judge_folder, given["images"]),
        summaries=summarise(runs),
        runs=runs,
    )
    write_text_atomically(given["output"] / f"{NAME}.json", found.model_dump_json(indent=2) + "\n")
    write_text_atomically(given["output"] / f"{NAME}.md", markdown(found))


if __name__ == "__main__":
    main()
