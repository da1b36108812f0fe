"""Finds a model by the name a user gave it, and the adapter that fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from compress.errors import ModelError
from compress.models.adapter import Adapter, ModelSource
from compress.models.layout import component_files, component_folder, has_weights, pipeline_index, read_json
from compress.models.tensors import TensorReader, read_tensors
from compress.models.zoo import zoo_entry, zoo_folder
from compress.models.zoo.stress import stressed_folder

__all__ = ["TensorReader", "component_files", "component_folder", "open_adapter", "read_tensors", "resolve"]

_DENOISERS = ("transformer", "unet")
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# Subfolders whole, but at the root only what belongs to a bare component: repositories keep single-file copies there.
_HUB_FILES = ("*.json", "*.txt", "*/*.safetensors", "diffusion_pytorch_model*.safetensors")
_HUB_VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*non_ema*")

# Classes that older pipelines name, with the `norm_type` that tells which class they became.
_LEGACY = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}


def resolve(name: str) -> ModelSource:
    """The model that `name` means: `zoo://NAME`, `hf://org/name@revision` or a folder.

    Only `hf://` touches the network, and only because the user wrote it. Weights are not read, but whatever weight
    files are there must be whole. A folder with a configuration alone is a source that can be inspected and planned.
    A variant `zoo://NAME?stress=VALUE` is made on first use, in $COMPRESS_CACHE or the user's cache folder.

    Raises:
        ModelError: there is no such model, or its folder is not in diffusers' layout.
        OutputError: a variant cannot be written.
    """
    if name.startswith("zoo://"):
        return _from_folder(name, _zoo(name))
    if name.startswith("hf://"):
        return _from_folder(name, _download(name))
    if "://" in name:
        raise ModelError(
            f"unknown kind of model source {name!r}", hint="zoo://NAME, hf://org/name@revision or a folder"
        )
    return _from_folder(name, Path(name).expanduser())


def open_adapter(source: ModelSource) -> Adapter:
    """The adapter of the source's model family; the generic one for any class without its own."""
    return _families().get(source.denoiser_class, _generic())(source)


def _families() -> dict[str, Callable[[ModelSource], Adapter]]:
    from compress.models.dit import DiTAdapter
    from compress.models.flux import FluxAdapter
    from compress.models.unet2d import UNet2DAdapter

    return {
        "DiTTransformer2DModel": DiTAdapter,
        "FluxTransformer2DModel": FluxAdapter,
        "UNet2DModel": UNet2DAdapter,
    }


def _generic() -> Callable[[ModelSource], Adapter]:
    from compress.models.generic import GenericAdapter

    return GenericAdapter


def _zoo(name: str) -> Path:
    model, _, query = name.removeprefix("zoo://").partition("?")
    entry = zoo_entry(model)
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in entry.options:
            known = ", ".join(entry.options) or "none"
            raise ModelError(f"unknown option {key!r}", where=name, hint=f"options of zoo://{model}: {known}")
        if key in options:
            raise ModelError(f"option {key!r} is given twice", where=name)
        options[key] = value
    folder = zoo_folder(model)
    return stressed_folder(folder, options["stress"]) if "stress" in options else folder


def _download(name: str) -> Path:
    match = _HUB_NAME.fullmatch(name.removeprefix("hf://"))
    if match is None:
        raise ModelError(f"not a Hugging Face model: {name!r}", hint="hf://org/name or hf://org/name@revision")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            match["repo"],
            revision=match["revision"],
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_VARIANTS),
        )
    except Exception as error:  # the hub client raises its own, requests' and OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the download failed: {reason}", where=name, hint="check the name, the revision and the network"
        ) from error
    return Path(folder)


def _from_folder(name: str, folder: Path) -> ModelSource:
    if not folder.is_dir():
        raise ModelError("no such folder", where=str(folder), hint="zoo://NAME, hf://org/name@revision or a folder")
    index = pipeline_index(folder)
    if not index and not (folder / "config.json").is_file():
        raise ModelError(
            "neither model_index.json nor config.json is there",
            where=str(folder),
            hint="give a pipeline folder as diffusers' save_pretrained writes it",
        )
    component = _denoiser_name(index, folder)
    config = read_json(folder / component / "config.json")
    library, class_name = _declared_class(index, component, config, folder)
    if has_weights(folder / component):
        read_tensors(folder / component).close()
    return ModelSource(name, str(folder), component, class_name, library, config)


def _denoiser_name(index: dict[str, Any], folder: Path) -> str:
    if not index:
        return ""
    present = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    for component in _DENOISERS:
        if component in present:
            # Early pipelines keep the denoiser's files beside model_index.json.
            return component if (folder / component).is_dir() or not (folder / "config.json").is_file() else ""
    raise ModelError(
        f"the pipeline has no {' or '.join(_DENOISERS)}",
        where=str(folder / "model_index.json"),
        hint=f"its components are {', '.join(present) or 'none'}",
    )


def _declared_class(index: dict[str, Any], component: str, config: dict[str, Any], folder: Path) -> tuple[str, str]:
    library, declared = index.get(component) or ("diffusers", None)
    class_name = config.get("_class_name") or declared
    if not class_name:
        raise ModelError("has no _class_name", where=str(folder / component / "config.json"))
    return str(library), _LEGACY.get((class_name, config.get("norm_type", "")), str(class_name))
