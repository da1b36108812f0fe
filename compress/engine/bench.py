"""Latency and memory of a run's artefacts beside their original, in interleaved rounds, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress.calibration.sampler import Denoise, denoise_with
from compress.checkpoint.assemble import component_name
from compress.checkpoint.load import read_manifest
from compress.checkpoint.quantizer import register
from compress.errors import InputError
from compress.evaluate.latency import Timings, interleaved_latency
from compress.evaluate.machine import machine_facts
from compress.evaluate.memory import measure_peak
from compress.evaluate.noise_floor import thread_count
from compress.export.manifest import read_manifest as read_export
from compress.export.onnx_export import export_denoiser
from compress.export.session import OnnxDenoiser, kernels_available
from compress.kernels.backends import kernels_in_use
from compress.models.adapter import Adapter
from compress.models.source import open_adapter, resolve
from compress.quantize.cached_embeddings import known_inputs
from compress.report.write import load_report

_Note = Callable[[str], None]
MEMORY_TARGET = "compress.stages.evaluate.targets:run_once"


@dataclass(frozen=True)
class BenchSettings:
    """Samples a call, threads, timed calls of each, and whether memory is measured in processes of its own."""

    batch: int = 16
    threads: int = 2
    rounds: int = 20
    memory: bool = True


@dataclass(frozen=True)
class BenchRow:
    """One way to run the denoiser.

    Attributes:
        artefact: `original`, `checkpoint` or `onnx`; runtime: what ran it.
        median_ms, q1, q3: of one call.
        speedup: median of the original in PyTorch over this one's.
        bytes: of the file or the component's folder.
        peak_mb: private memory of a process that loads it and makes one call; None where not measured.
    """

    artefact: str
    runtime: str
    median_ms: float
    q1: float
    q3: float
    speedup: float
    bytes: int
    peak_mb: float | None


@dataclass(frozen=True)
class Bench:
    """The table of one run, with the machine's facts."""

    name: str
    settings: BenchSettings
    machine: dict[str, Any]
    rows: tuple[BenchRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Contender:
    artefact: str
    runtime: str
    call: Callable[[], object]
    path: Path
    launch: dict[str, Any]


def bench_run(folder: Path, settings: BenchSettings, note: _Note) -> Bench:
    """Time the original (PyTorch and onnxruntime), the checkpoint and the ONNX model (our kernels and stock) of a run.

    The original's ONNX is exported to a temporary folder. `note` is told what happens.

    Raises:
        InputError: the folder is no run's output, or its original is gone. ModelError, CheckpointError, ExportError: a
            part cannot be read.
    """
    register()
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        raise InputError("no checkpoint here", where=str(folder), hint="give the output folder of `compress run`")
    adapter = open_adapter(resolve(str(checkpoint)))
    original = open_adapter(resolve(_original(folder, checkpoint / component_name(adapter.source))))
    exported = folder / "onnx" / component_name(adapter.source)
    onnx = exported if (exported / "model.onnx").is_file() else None
    with TemporaryDirectory(prefix="compress-bench-") as scratch, thread_count(settings.threads):
        contenders = list(_contenders(original, adapter, onnx, Path(scratch), settings, note))
        note(f"timing {len(contenders)} ways to make one call, {settings.rounds} rounds")
        with torch.inference_mode():
            timings = interleaved_latency({_key(c): c.call for c in contenders}, settings.rounds, warmup=2)
        rows = tuple(_rows(contenders, timings, settings, note))
    return Bench(folder.name, settings, machine_facts(), rows)


def _original(folder: Path, component: Path) -> str:
    """The model a run started from; a relative folder as the run resolved it, which only its report says."""
    written = str(read_manifest(component)["recipe"]["model"]["source"])
    names = [written]
    if (folder / "report" / "report.json").is_file():
        names.insert(0, str(load_report(folder).model.get("source", written)))
    for name in names:
        if "://" in name or Path(name).expanduser().is_dir():
            return name
    raise InputError(
        f"the original model {names[0]} is not there any more",
        where=str(folder),
        hint="put it back, or work in the folder that `compress run` was called in",
    )


def _contenders(
    original: Adapter, compressed: Adapter, onnx: Path | None, scratch: Path, settings: BenchSettings, note: _Note
) -> Iterator[_Contender]:
    inputs = known_inputs(compressed, original.example_inputs(settings.batch))
    t = inputs.timestep.float()

    def made(artefact: str, runtime: str, denoise: Denoise, path: Path, **launch: Any) -> _Contender:
        return _Contender(artefact, runtime, lambda: denoise(inputs.sample, t, inputs.condition), path, launch)

    def session(folder: Path, kernels: bool) -> OnnxDenoiser:
        # Threads that wait busily would take the cores from whatever has its turn next.
        return OnnxDenoiser(folder, threads=settings.threads, spinning=False, kernels=kernels)

    source = original.source.folder
    model = original.load()
    yield made("original", "PyTorch", denoise_with(original, model), _part(original), source=source)
    note("exporting the original to ONNX")
    plain = export_denoiser(original, model, scratch / "original").path.parent
    yield made("original", "onnxruntime", session(plain, False), plain, source=source, onnx=str(plain), kernels=False)
    source = compressed.source.folder
    loaded = denoise_with(compressed, compressed.load())
    yield made("checkpoint", f"PyTorch, kernels {kernels_in_use()}", loaded, _part(compressed), source=source)
    if onnx is None:
        return
    if kernels_available() and read_export(onnx)["operators"] == "compress":
        launch = {"source": source, "onnx": str(onnx), "kernels": True}
        yield made("onnx", f"onnxruntime, kernels {kernels_in_use()}", session(onnx, True), onnx, **launch)
    launch = {"source": source, "onnx": str(onnx), "kernels": False}
    yield made("onnx", "onnxruntime, stock", session(onnx, False), onnx, **launch)


def _part(adapter: Adapter) -> Path:
    """The folder of the denoiser."""
    return Path(adapter.source.folder) / adapter.source.denoiser


def _rows(
    contenders: list[_Contender], timings: dict[str, Timings], settings: BenchSettings, note: _Note
) -> Iterator[BenchRow]:
    baseline = timings[_key(contenders[0])].median
    for one in contenders:
        taken = timings[_key(one)]
        q1, q3 = taken.quartiles
        peak = None
        if settings.memory:
            note(f"peak memory of {_key(one)}")
            arguments = {"onnx": None, **one.launch, "batch": settings.batch, "threads": settings.threads}
            peak = measure_peak(MEMORY_TARGET, arguments).peak
        size = sum(path.stat().st_size for path in one.path.rglob("*") if path.is_file())
        yield BenchRow(one.artefact, one.runtime, taken.median, q1, q3, baseline / taken.median, size, peak)


def _key(one: _Contender) -> str:
    return f"{one.artefact} in {one.runtime}"
