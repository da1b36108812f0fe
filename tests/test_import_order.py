"""Imports go downward only (ARCHITECTURE section 2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "compress"
LAYERS = [
    {"cli"},
    {"engine"},
    {"recipe"},
    {"stages"},
    {"export", "checkpoint"},
    {"quantize", "prune", "distill", "cache", "evaluate"},
    {"training"},
    {"calibration"},
    {"models", "report"},
    {"kernels"},
    {"formats"},
    {"config", "files"},
    {"errors"},
]
RANK = {name: level for level, names in enumerate(LAYERS) for name in names}
FACES = {"__init__", "__main__", "api", "diffusers", "onnx"}  # public faces on top of everything


def part_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "__init__"


def imports(path: Path) -> set[str]:
    """Every compress module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "compress" else []
            found |= set(names) or {node.module or ""}
    return {name for name in found if name == "compress" or name.startswith("compress.")}


def allowed(importer: str, imported: str) -> bool:
    if importer in FACES or importer == imported:
        return True
    if importer not in RANK or imported not in RANK:
        return False
    return RANK[importer] < RANK[imported]


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    inside = path.relative_to(ROOT)
    importer = inside.parts[0].removesuffix(".py")
    wrong = {name for name in imports(path) if not allowed(importer, part_of(name))}
    assert not wrong, f"{inside} ({importer}) imports {sorted(wrong)}"


def test_the_check_can_fail() -> None:
    assert not allowed("models", "engine")
    assert not allowed("quantize", "prune")
    assert not allowed("formats", "kernels")
    assert allowed("cli", "formats")
    assert not allowed("unheard_of", "formats")
