"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_dit_pipeline


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder around a tiny DiT of three blocks."""
    return tiny_dit_pipeline(tmp_path_factory.mktemp("models") / "tiny-dit", blocks=3)


@pytest.fixture
def recipe_file(tmp_path: Path, dit_folder: Path):
    """Writes a recipe for the tiny DiT, with changes by top-level key, and returns its path."""

    def write(file: str = "recipe.yaml", **changes: object) -> Path:
        data = {
            "version": 1,
            "name": "tiny",
            "model": {"source": str(dit_folder), "device": "cpu"},
            "calibration": {"sampler": {"kind": "ddim", "steps": 3, "guidance_scale": 1.5}, "samples": 6},
            "stages": [
                {
                    "kind": "quantize",
                    "weights": {"format": "int4", "granularity": "group", "group": 8},
                    "activations": {"format": "int8", "granularity": "tensor", "mode": "static"},
                    "rules": [{"role": "modulation", "weights": {"format": "int8"}}],
                }
            ],
            "evaluate": [{"kind": "noise_error", "n": 24, "bands": 3}],
            "gates": [{"metric": "size_ratio", "max": 0.9}],
        }
        path = tmp_path / file
        path.write_text(yaml.safe_dump({**data, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory: pytest.TempPathFactory):
    """Variants of bundled models are made in a cache of the test run, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _threads_restored():
    """No test leaves another thread count behind."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """PyTorch's number of threads as it was: commands set it, and some of its operators round differently with it."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
