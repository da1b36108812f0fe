"""What finished work depends on besides its inputs: the code that did it and the libraries underneath."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from compress.files import file_sha256

_PACKAGES = (
    "formats", "kernels", "models", "calibration", "quantize", "prune", "evaluate", "checkpoint", "export", "stages",
    "report",
)  # fmt: skip
_LIBRARIES = ("torch", "diffusers", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors")


def tree_hashes(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file below a folder that fits one of the globs, by relative path."""
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(files)}


@cache
def code_hash() -> str:
    """One hash over the sources of everything that computes; the command line does not count."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256("".join(file_sha256(root / name) for name in ("config.py", "files.py")).encode())
    for package in _PACKAGES:
        for name, value in tree_hashes(root / package, ["*.py", "*.cpp", "*.h", "*.inc", "CMakeLists.txt"]).items():
            digest.update(f"{package}/{name}:{value}\n".encode())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of the libraries whose results it passes on."""
    found = {"compress": metadata.version("compress")}
    return found | {name: metadata.version(name) for name in _LIBRARIES}
