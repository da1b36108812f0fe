"""Runs a plan: stages, checkpoint, ONNX, evaluation, report; every finished part is found again by its hash."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compress.calibration.conditions import Conditions, resolve_conditions
from compress.calibration.trajectory import Trajectory, TrajectorySpec, log_trajectory, spec_hash
from compress.checkpoint.assemble import assemble_checkpoint, component_name, copy_tree
from compress.checkpoint.quantizer import register
from compress.config import content_hash
from compress.engine.cache import Step
from compress.engine.fingerprint import code_hash, tree_hashes, versions
from compress.engine.measure import KeyedSteps
from compress.engine.progress import ConsoleProgress
from compress.engine.workspace import LOG_FILE, Workspace
from compress.errors import MemoryBudgetError, RecipeError, RunError
from compress.models.adapter import Adapter, ModelSource
from compress.models.layout import component_files, component_folder, scheduler_config
from compress.models.source import open_adapter, resolve
from compress.recipe.dump import dump
from compress.recipe.model import LoadedRecipe
from compress.recipe.plan import Plan, make_plan, trajectory_timesteps
from compress.report.model import StageRecord
from compress.stages.base import RunContext, stage_kind

_HASHED = ("*.safetensors", "*.json")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes what comes out, but `threads` may change last bits.

    Attributes:
        output: folder of the results.
        cache: folder of finished work, shared by runs; by default inside `output`.
        fresh: drop what is in the output folder first.
        threads: of torch; None leaves torch's choice.
        memory_budget: bytes the process may take, None for no bound.
        quiet: say nothing on the console.
    """

    output: Path
    cache: Path | None = None
    fresh: bool = False
    threads: int | None = None
    memory_budget: int | None = None
    quiet: bool = False


class Component(NamedTuple):
    """The denoiser after some stages: where it lies, and the hash of everything that made it."""

    adapter: Adapter
    key: str


@dataclass
class Run:
    """State of one run; methods are its parts, in the order `engine.job` calls them."""

    loaded: LoadedRecipe
    options: RunOptions
    workspace: Workspace
    progress: ConsoleProgress
    plan: Plan
    original: Adapter
    source_key: str
    conditions: Conditions
    device: str
    records: list[StageRecord] = field(default_factory=list)

    @property
    def steps(self) -> KeyedSteps:
        """The cached steps of this run."""
        return KeyedSteps(self.workspace.cache, self.check_memory)

    def check_memory(self) -> None:
        """Raises MemoryBudgetError once the process has been larger than the budget."""
        budget, peak = self.options.memory_budget, peak_rss()
        if budget is not None and peak > budget:
            raise MemoryBudgetError(
                f"the run took {peak / 1e9:.2f} GB, above the budget of {budget / 1e9:.2f} GB",
                hint="raise --memory-budget; finished steps are kept",
            )

    def trajectory_spec(self) -> TrajectorySpec:
        """What the calibration trajectory is made of."""
        recipe = self.loaded.recipe
        return TrajectorySpec(
            sampler=recipe.calibration.sampler,
            scheduler_config=scheduler_config(self.original.source),
            conditions=self.conditions,
            timesteps=recipe.calibration.timesteps,
            samples=recipe.calibration.samples,
            seed=recipe.seed,
            model_hashes={"source": self.source_key, "code": code_hash()},
            device=self.device,
            dtype=recipe.model.dtype,
        )

    def trajectory(self) -> Trajectory:
        """The logged trajectory of the original model; a killed one is continued chunk by chunk."""
        spec = self.trajectory_spec()
        folder = self.workspace.cache.root / f"trajectory-{spec_hash(self.original, spec)[:20]}"
        with self.workspace.cache.lock(folder.name):
            return self._logged(spec, folder)

    def _logged(self, spec: TrajectorySpec, folder: Path) -> Trajectory:
        if (folder / "trajectory.json").is_file():
            with suppress(RunError):  # damaged: logged again as far as needed
                return Trajectory.open(folder)
        self.progress.start("calibrate", spec.samples)
        start = time.monotonic()
        model = self.original.load(dtype=spec.dtype, device=self.device)
        found = log_trajectory(self.original, model, spec, folder, progress=self.progress.reach)
        self.progress.note(f"calibrate: {len(found)} model calls logged in {time.monotonic() - start:.1f} s")
        return found

    def stages(self) -> Component:
        """The denoiser after every stage."""
        component = Component(self.original, self.source_key)
        for number, stage in enumerate(self.loaded.recipe.stages):
            with self.loaded.locating("stages", number):
                component = self._stage(number, stage, component)
        return component

    def _stage(self, number: int, stage: Any, component: Component) -> Component:
        kind = stage_kind(stage)
        trajectory = spec_hash(self.original, self.trajectory_spec()) if kind.needs_trajectory(stage) else None
        recipe = self.loaded.recipe
        inputs = {"stage": stage, "component": component.key, "trajectory": trajectory, "seed": recipe.seed}

        name = f"stage-{number}-{stage.kind}"
        work = self.workspace.cache.root / "work" / self.steps.location(name, inputs).name

        def build(folder: Path) -> dict[str, Any]:
            context = RunContext(
                adapter=component.adapter,
                trajectory=self.trajectory,
                timesteps=lambda: trajectory_timesteps(recipe, self.original),
                folder=folder,
                work=work,
                seed=recipe.seed,
                device=self.device,
                memory_budget=self.options.memory_budget,
                progress=self.progress,
            )
            return {"facts": kind.run(stage, context).facts}

        step = self.steps.step(name, inputs, build)
        shutil.rmtree(work, ignore_errors=True)
        self.record(stage.kind, stage.model_dump(mode="json", exclude_none=True), step, step.result["facts"])
        return Component(stage_adapter(step.folder), step.key)

    def record(self, kind: str, settings: dict[str, object], step: Step, facts: dict[str, Any] | None = None) -> None:
        """Remember a step for the report, and say that it is done."""
        seconds = float(step.result["seconds"])
        self.records.append(
            StageRecord(kind=kind, settings=settings, seconds=seconds, cached=step.cached, facts=facts or {})
        )
        self.progress.note(f"{kind}: " + ("done before" if step.cached else f"{seconds:.1f} s"))

    def checkpoint(self, component: Component) -> Path:
        """OUT/checkpoint, published whole."""
        manifest = self.manifest(component)

        def build(folder: Path) -> None:
            assemble_checkpoint(self.original.source, component_folder(component.adapter.source), folder, manifest)

        root = Path(self.original.source.folder)
        others = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
        key = content_hash([component.key, manifest, others, tree_hashes(root, ["*.json"])])
        return self.workspace.publish("checkpoint", key, build)

    def manifest(self, component: Component) -> dict[str, Any]:
        """Where a checkpoint comes from; no times, so that equal runs give equal bytes."""
        recipe = self.loaded.recipe
        return {
            "manifest_version": 1,
            "recipe": recipe.model_dump(mode="json"),
            "source": self.original.source.name if "://" in self.original.source.name else recipe.model.source,
            "source_sha256": self.source_key,
            "component_key": component.key,
            "versions": versions(),
            "code_sha256": code_hash(),
            "sampler": recipe.calibration.sampler.model_dump(mode="json"),
        }

    def onnx(self, checkpoint: Path) -> Path | None:
        """OUT/onnx, published whole, if the recipe asks for it."""
        settings = self.loaded.recipe.export.onnx
        if settings is None:
            return None
        from compress.export.onnx_export import export_denoiser

        hashes = tree_hashes(checkpoint / component_name(self.original.source), _HASHED)
        inputs = {"settings": settings, "checkpoint": {k: v for k, v in hashes.items() if k != "manifest.json"}}

        def build(folder: Path) -> dict[str, Any]:
            self.progress.note("export: ONNX")
            adapter = open_adapter(resolve(str(checkpoint)))
            result = export_denoiser(
                adapter,
                adapter.load(),
                folder / component_name(self.original.source),
                opset=settings.opset,
                operators=settings.operators,
                fuse=settings.fuse,
            )
            return {"facts": {"nodes": result.nodes_by_operator, "bytes": result.bytes}}

        step = self.steps.step("onnx", inputs, build)
        facts = {"bytes": step.result["facts"]["bytes"]}
        facts |= {f"{name} nodes": count for name, count in step.result["facts"]["nodes"].items()}
        self.record("export", settings.model_dump(mode="json"), step, facts)
        return self.workspace.publish("onnx", step.key, lambda folder: copy_tree(step.folder, folder))


def stage_adapter(folder: Path) -> Adapter:
    """Adapter of a stage's component, which lies bare in its folder; noise levels stay the original's business."""
    register()
    return open_adapter(resolve(str(folder)))


def begin(loaded: LoadedRecipe, options: RunOptions) -> Run:
    """Validate everything that can be validated before work; writes nothing.

    Raises:
        RecipeError, ModelError: see `make_plan`. MemoryBudgetError: the plan does not fit the budget.
        InputError: the output folder is another recipe's.
    """
    plan = make_plan(loaded)
    if options.memory_budget is not None and plan.memory_bytes > options.memory_budget:
        raise MemoryBudgetError(
            f"the run needs about {plan.memory_bytes / 1e9:.2f} GB, the budget is {options.memory_budget / 1e9:.2f} GB",
            hint="nothing was written; raise --memory-budget",
        )
    recipe = loaded.recipe
    source = resolve(loaded.model_name())
    component_files(component_folder(source))
    workspace = Workspace(options.output, options.cache)
    with loaded.locating("model", "device"):
        device = pick_device(recipe.model.device)
    workspace.check(dump(recipe), options.fresh)
    register()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    adapter = open_adapter(source)
    return Run(
        loaded=loaded,
        options=options,
        workspace=workspace,
        progress=ConsoleProgress(options.output / LOG_FILE, quiet=options.quiet),
        plan=plan,
        original=adapter,
        source_key=source_hash(source),
        conditions=resolve_conditions(recipe.calibration.conditions, adapter, folders=loaded.folders()),
        device=device,
    )


def source_hash(source: ModelSource) -> str:
    """Hash of the denoiser's files and of the scheduler's configuration."""
    hashes = tree_hashes(component_folder(source), _HASHED)
    return content_hash([source.denoiser_class, hashes, {k: str(v) for k, v in scheduler_config(source).items()}])


def pick_device(wanted: str) -> str:
    """`cuda` where asked for or present, else `cpu`. Raises RecipeError when it is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError("this machine, or this torch, has no CUDA", hint="set `device: auto` or `cpu`")
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
