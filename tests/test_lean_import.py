"""Importing the package, and asking for help, loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript", "scipy", "datasets", "matplotlib"]

HELP = """
import sys
from compress.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""


@pytest.mark.parametrize("code", ["import compress, sys", HELP], ids=["import compress", "compress --help"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    code += f"\nprint('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "heavy: []"


def test_settings_of_a_recipe_load_neither_diffusers_nor_onnx() -> None:
    code = "import sys, compress.recipe.model; print(sorted({'diffusers', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    import compress

    assert compress.__all__ == ["Recipe", "load", "run"]
    assert all(hasattr(compress, name) for name in compress.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compress.nothing
