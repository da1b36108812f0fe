"""What a user of an exported denoiser must know beside the graph: inputs, noise schedule, classes."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from compress.errors import ExportError, ModelError
from compress.export.trace import OUTPUT, Traced
from compress.kernels.schema import DOMAIN, VERSION
from compress.models.adapter import Adapter
from compress.models.layout import scheduler_config

MANIFEST_FILE: Final = "export.json"
SCHEDULER_FILE: Final = "scheduler_config.json"
MANIFEST_VERSION: Final = 1


def describe(adapter: Adapter, traced: Traced, *, opset: int, operators: str) -> dict[str, Any]:
    """Content of `export.json`; also stored in the model's metadata under the key `compress`.

    `inputs`: name, type and shape of each input, "batch" for the free extent. `largest_batch`: bound of it, or null.
    `classes`, `null_condition`: for class-conditional models the number of classes, and the input values that mean "no
    class". `prediction`: what the output means, null when the source has no scheduler.
    """
    tensors = {"sample": traced.inputs.sample, "timestep": traced.inputs.timestep, **traced.inputs.condition}
    inputs = [
        {"name": name, "dtype": _dtype(tensors[name]), "shape": ["batch", *tensors[name].shape[1:]]}
        for name in traced.names
    ]
    return {
        "version": MANIFEST_VERSION,
        "compress_version": metadata.version("compress"),
        "operators": operators,
        "opset": opset,
        "function_domain": {DOMAIN: VERSION},
        "family": adapter.family,
        "denoiser_class": adapter.source.denoiser_class,
        "inputs": inputs,
        "output": OUTPUT,
        "sample_shape": list(adapter.sample_shape()),
        "largest_batch": traced.largest_batch,
        "classes": adapter.class_count(),
        "null_condition": _null_condition(adapter),
        "prediction": _prediction(adapter),
    }


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _null_condition(adapter: Adapter) -> dict[str, int] | None:
    if adapter.class_count() is None:
        return None
    null = adapter.null_condition(adapter.class_condition(torch.zeros(1, dtype=torch.int64)))
    return None if null is None else {name: int(value.item()) for name, value in null.items()}


def _prediction(adapter: Adapter) -> str | None:
    try:
        return adapter.noise_schedule().prediction
    except ModelError:
        return None


def write_companions(adapter: Adapter, facts: dict[str, Any], folder: Path) -> None:
    """Write `export.json`, and `scheduler_config.json` if the source has a scheduler."""
    _write_json(folder / MANIFEST_FILE, facts)
    scheduler = folder / SCHEDULER_FILE
    scheduler.unlink(missing_ok=True)
    try:
        _write_json(scheduler, scheduler_config(adapter.source))
    except ModelError:
        return  # a bare component: its user knows the scheduler


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """`export.json` of an exported folder.

    Raises:
        ExportError: it is missing, damaged, or of a newer version.
    """
    path = folder / MANIFEST_FILE
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        version = int(value["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            "is missing or damaged", where=str(path), hint="give the folder that the export wrote"
        ) from error
    if version > MANIFEST_VERSION:
        raise ExportError(f"has version {version}", where=str(path), hint="upgrade with `pip install -U compress`")
    return value
