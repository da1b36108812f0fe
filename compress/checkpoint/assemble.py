"""`OUT/checkpoint`: the source pipeline with its denoiser replaced by the compressed one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.models.adapter import ModelSource

MANIFEST = "manifest.json"


def link_tree(source: Path, destination: Path) -> None:
    """Copy a folder by hard links where the file system allows it: no second copy of large files."""
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        link_file(path, target)


def link_file(source: Path, target: Path) -> None:
    """One hard link, or a copy where links are not possible (another file system, a link to follow)."""
    if source.is_symlink():
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
    name = component_name(source)
    root = Path(source.folder)
    index = root / "model_index.json"
    if source.denoiser and index.is_file():
        shutil.copyfile(index, folder / index.name)
        for part in json.loads(index.read_text()):
            if not part.startswith("_") and part != name and (root / part).is_dir():
                link_tree(root / part, folder / part)
    (folder / name).mkdir()
    link_tree(component, folder / name)
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / name / MANIFEST).write_text(text)
