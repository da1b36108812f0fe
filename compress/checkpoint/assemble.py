"""`OUT/checkpoint`: the source pipeline with its denoiser replaced by the compressed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.models.adapter import ModelSource
from compress.models.layout import scheduler_config

MANIFEST = "manifest.json"


def copy_tree(source: Path, destination: Path) -> None:
    """Copy a folder's files, following links. No hard links: what a user does to the copy must not reach the source."""
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def component_name(source: ModelSource) -> str:
    """Folder of the denoiser within a checkpoint; a bare component folder is named as diffusers would."""
    if source.denoiser:
        return source.denoiser
    return "unet" if "UNet" in source.denoiser_class else "transformer"


def assemble_checkpoint(source: ModelSource, component: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Build a pipeline folder: the source's other components unchanged, and the compressed denoiser with its manifest.

    Only the component folders that model_index.json names are taken over, not whatever else lies beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, root = component_name(source), Path(source.folder)
    index = root / "model_index.json"
    if source.denoiser and index.is_file():
        shutil.copyfile(index, folder / index.name)
        for part in json.loads(index.read_text()):
            if not part.startswith("_") and part != name and (root / part).is_dir():
                copy_tree(root / part, folder / part)
    else:
        _write_index(source, name, folder)
    (folder / name).mkdir()
    copy_tree(component, folder / name)
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / name / MANIFEST).write_text(text)


def _write_index(source: ModelSource, name: str, folder: Path) -> None:
    """model_index.json and scheduler/ for a source that has no folder of its own for the denoiser."""
    config = scheduler_config(source)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = {
        "_class_name": "DiffusionPipeline",
        name: [source.library, source.denoiser_class],
        "scheduler": ["diffusers", config.get("_class_name")],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
