"""What lies where in a model folder in diffusers' layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from compress.errors import ModelError
from compress.models.adapter import ModelSource

INDEX_SUFFIX = ".safetensors.index.json"
_STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names, without variants such as `.fp16`
_SHARD = re.compile(rf"({'|'.join(_STEMS)})(-\d+-of-\d+)?\.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: the file is missing, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"not readable as JSON: {error}", where=str(path), hint="copy the file anew") from error
    if not isinstance(value, dict):
        raise ModelError("holds no JSON object", where=str(path), hint="copy the file anew")
    return value


def pipeline_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`, or an empty dictionary for a bare component."""
    path = folder / "model_index.json"
    return read_json(path) if path.is_file() else {}


def component_folder(source: ModelSource) -> Path:
    """Folder of the denoiser's `config.json`."""
    return Path(source.folder) / source.denoiser


def scheduler_config(source: ModelSource) -> dict[str, Any]:
    """The scheduler's configuration.

    Raises:
        ModelError: the source has no scheduler, as a bare component may.
    """
    for path in (Path(source.folder) / "scheduler", Path(source.folder)):
        if (path / "scheduler_config.json").is_file():
            return read_json(path / "scheduler_config.json")
    raise ModelError(
        "there is no scheduler_config.json, so the noise levels are unknown",
        where=source.folder,
        hint="point to the whole pipeline folder, or add scheduler/scheduler_config.json",
    )


def component_files(folder: Path | str) -> list[Path]:
    """The safetensors files of one component, shards in order.

    Raises:
        ModelError: none is there, a shard is missing, or a file is there that belongs to no index.
    """
    folder = Path(folder)
    indices = [folder / f"{stem}{INDEX_SUFFIX}" for stem in _STEMS if (folder / f"{stem}{INDEX_SUFFIX}").is_file()]
    singles = [folder / f"{stem}.safetensors" for stem in _STEMS if (folder / f"{stem}.safetensors").is_file()]
    if indices:
        files = [folder / name for name in sorted(set(weight_map(indices[0]).values()))]
        for file in files:
            if not file.is_file():
                raise ModelError("the shard is missing", where=str(file), hint=f"{indices[0].name} names it")
    elif singles:
        files = singles[:1]
    else:
        raise ModelError("there are no safetensors weights", where=str(folder), hint=_what_is_there(folder))
    for stray in sorted(folder.glob("*.safetensors")):
        if _SHARD.fullmatch(stray.name) and stray not in files:
            raise ModelError("the file belongs to no index", where=str(stray), hint="remove it, or add its index")
    return files


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors or an index of them."""
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{INDEX_SUFFIX}"))


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard file name, from a `*.safetensors.index.json`."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError("has no weight_map", where=str(index), hint="copy the file anew")
    outside = [file for file in names.values() if Path(str(file)).name != file]
    if outside:
        raise ModelError(f"names a shard outside its folder: {outside[0]}", where=str(index))
    return {str(name): str(file) for name, file in names.items()}


def _what_is_there(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*") if path.suffix in {".safetensors", ".bin", ".pt", ".ckpt"})
    expected = f"expected {_STEMS[0]}.safetensors"
    if not found:
        return f"{expected}; a configuration alone can be inspected, not run"
    return f"{expected}, found {', '.join(found[:3])}"
