"""The files that are compared, each made in a process of its own: `python -m benchmarks.denoiser.artefacts NAME …`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import RunError

_DONE = "made.json"
_CALIBRATION_BATCHES = 3


@dataclass(frozen=True)
class Recipe:
    """Of which model to make artefacts, and where: `folder` holds one folder a name."""

    folder: Path
    blocks: int
    batch: int
    seed: int

    @property
    def source(self) -> Path:
        """Folder of the float32 ONNX file that peers start from."""
        return self.folder / SOURCE


def _compress(recipe: Recipe, folder: Path, group: int | None, mode: str) -> str:
    from benchmarks.denoiser.model import build, quantize
    from compress.export.onnx_export import export_denoiser
    from compress.formats import WeightSpec

    spec = WeightSpec("int4") if group is None else WeightSpec("int4", "group", group, scale_dtype="float16")
    denoiser = quantize(build(recipe.folder / "config", recipe.blocks, recipe.seed), spec, mode)
    export_denoiser(denoiser.adapter, denoiser.model, folder)
    return "model.onnx"


def _onnx_fp32(recipe: Recipe, folder: Path) -> str:
    from benchmarks.denoiser.model import build
    from compress.export.onnx_export import export_denoiser

    denoiser = build(recipe.folder / "config", recipe.blocks, recipe.seed)
    export_denoiser(denoiser.adapter, denoiser.model, folder)
    return "model.onnx"


def _ort_nbits4(recipe: Recipe, folder: Path) -> str:
    quantization: Any = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    logging.disable(logging.INFO)
    settings = {"block_size": 128, "is_symmetric": True, "accuracy_level": 4}
    quantizer = quantization.MatMulNBitsQuantizer(str(recipe.source / "model.onnx"), **settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)
    return "model.onnx"


def _openvino(recipe: Recipe, folder: Path, change: Callable[[Any, Any], Any] | None = None) -> str:
    """OpenVINO's own files of the float32 model, changed by `change(nncf, model)`."""
    openvino: Any = importlib.import_module("openvino")
    model = openvino.convert_model(str(recipe.source / "model.onnx"))
    if change is not None:
        from benchmarks.peers.openvino_peers import quiet_nncf

        model = change(quiet_nncf(), model)
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    return "model.xml"


def _int4_weights(nncf: Any, model: Any) -> Any:
    mode = nncf.CompressWeightsMode.INT4_SYM
    return nncf.compress_weights(model, mode=mode, group_size=128, ratio=1.0, all_layers=True)


def _static_int8(recipe: Recipe) -> Callable[[Any, Any], Any]:
    def change(nncf: Any, model: Any) -> Any:
        from benchmarks.denoiser.model import adapter_of, inputs

        adapter = adapter_of(recipe.folder / "config", recipe.blocks)
        batches = [inputs(adapter, recipe.batch, recipe.seed + 1 + i) for i in range(_CALIBRATION_BATCHES)]
        data = nncf.Dataset([{name: value.numpy() for name, value in batch.items()} for batch in batches])
        kind = nncf.ModelType.TRANSFORMER
        return nncf.quantize(model, data, subset_size=_CALIBRATION_BATCHES, model_type=kind)

    return change


MAKERS: dict[str, Callable[[Recipe, Path], str]] = {
    "onnx_fp32": _onnx_fp32,
    "compress_int4": lambda recipe, folder: _compress(recipe, folder, None, "exact"),
    "compress_int4_g128": lambda recipe, folder: _compress(recipe, folder, 128, "exact"),
    "ort_nbits4_b128": _ort_nbits4,
    "openvino_fp32": _openvino,
    "openvino_int4_g128": lambda recipe, folder: _openvino(recipe, folder, _int4_weights),
    "openvino_int8": lambda recipe, folder: _openvino(recipe, folder, _static_int8(recipe)),
}
SOURCE = "onnx_fp32"
FROM_TORCH = (SOURCE, "compress_int4", "compress_int4_g128")
"""Those made from the PyTorch model; the others start from SOURCE."""


@dataclass(frozen=True)
class Artefact:
    """A made artefact: what a runtime opens, its bytes on disk, and how long making it took."""

    file: Path
    bytes: int
    seconds: float


def make(name: str, recipe: Recipe, *, reuse: bool) -> Artefact:
    """Make an artefact in a fresh process, or take the one that is there with `reuse`.

    Raises:
        RunError: the process failed; carries its last line.
    """
    folder = recipe.folder / name
    if not (reuse and (folder / _DONE).is_file()):
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.denoiser.artefacts", name, str(recipe.folder)]
        command += [str(recipe.blocks), str(recipe.batch), str(recipe.seed)]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
        if done.returncode:
            raise RunError((done.stderr.strip().splitlines() or ["no reason given"])[-1], where=name)
    facts = json.loads((folder / _DONE).read_text())
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".data", ".xml", ".bin"))
    return Artefact(folder / facts["file"], size, facts["seconds"])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(MAKERS))
    parser.add_argument("folder", type=Path)
    for number in ("blocks", "batch", "seed"):
        parser.add_argument(number, type=int)
    given = parser.parse_args(argv)
    recipe = Recipe(given.folder.resolve(), given.blocks, given.batch, given.seed)
    folder = recipe.folder / given.name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        file = MAKERS[given.name](recipe, folder)
    facts = {"file": file, "seconds": time.perf_counter() - start}
    (folder / _DONE).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
