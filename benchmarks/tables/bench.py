"""One section of a table, opened: its model, and the recipes of its cells in the engine's hands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.tables.table import Cell
from compress.calibration.sampler import Denoise, denoise_with
from compress.config import content_hash
from compress.engine.run import Component, Run, RunOptions, begin
from compress.evaluate.protocol import Protocol
from compress.models.adapter import Adapter
from compress.models.layout import component_folder, scheduler_config
from compress.models.zoo.classifier import judge_of
from compress.quantize.decoded import decode_layers
from compress.recipe.dump import dump
from compress.recipe.model import LoadedRecipe, Recipe
from compress.recipe.source import Source
from compress.report.model import Artefact
from compress.stages.evaluate import EvaluationContext
from compress.stages.evaluate.base import Subject


@dataclass(frozen=True)
class Bench:
    """A model under the protocol.

    Attributes:
        source: as a recipe names it.
        cache: folder of finished work, shared by all cells and tables.
        seed: of what is evaluated; a cell's own seed decides about its recipe alone.
    """

    source: str
    protocol: Protocol
    cache: Path
    seed: int = 0

    def recipe(self, cell: Cell | None) -> LoadedRecipe:
        """The recipe of a cell; that of the untouched model for None."""
        words = f"{self.source.rpartition('/')[2]} full precision" if cell is None else cell.name
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", words)
        data: dict[str, Any] = {
            "version": 1,
            "name": name,
            "seed": self.seed if cell is None else cell.seed,
            "model": {"source": self.source, "device": "cpu"},
            "calibration": {
                "sampler": self.protocol.sampler.model_dump(mode="json"),
                "conditions": {"kind": "classes"},
                "samples": self.protocol.calibration_samples,
                **({} if cell is None else cell.calibration),
            },
            "stages": [] if cell is None else [dict(stage) for stage in cell.stages],
        }
        return LoadedRecipe(Recipe.model_validate(data), Source(data, {}, self.cache / f"{name}.yaml", ""))

    def open(self, cell: Cell | None) -> Run:
        """The engine's run of that recipe, in a folder of its own over the shared cache."""
        loaded = self.recipe(cell)
        text = dump(loaded.recipe)
        folder = self.cache / "cells" / f"{loaded.recipe.name}-{content_hash(text)[:8]}"  # tables may share names
        run = begin(loaded, RunOptions(folder, cache=self.cache / "steps", quiet=True))
        with run.workspace.cache.lock(folder.name):  # parts of one cell may run at once
            run.workspace.claim(text, fresh=False)
        return run

    def context(self, run: Run, component: Component | None) -> EvaluationContext:
        """The original and, unless None, the compressed component as reloaded from its folder."""
        original = run.original
        found: dict[Artefact, Subject] = {"reference": _subject("reference", original, run.source_key, original)}
        if component is not None:
            found["checkpoint"] = _subject("checkpoint", original, component.key, component.adapter)
        return EvaluationContext(
            adapter=original,
            subjects=found,
            sampler=self.protocol.sampler,
            scheduler_config=scheduler_config(original.source),
            conditions=run.conditions,
            judge=judge_of(original.source.name),
            steps=run.steps,
            seed=self.seed,
            device=run.device,
        )


def _subject(artefact: Artefact, original: Adapter, key: str, adapter: Adapter) -> Subject:
    return Subject(
        artefact=artefact,
        key=key,
        open=partial(_denoiser, original, adapter),
        folder=component_folder(adapter.source),
        launch={},
        load=adapter.load,
    )


def _denoiser(original: Adapter, adapter: Adapter) -> Denoise:
    """Packed layers decode once, not in every call; a component alone lacks what its pipeline knows (null class)."""
    return denoise_with(original, decode_layers(adapter.load()))
