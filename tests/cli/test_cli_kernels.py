"""What `compress formats` says about the kernels of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.cli.catalogue import formats
from compress.kernels import cpu_library


@pytest.fixture(autouse=True)
def _load_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)
    cpu_library._loaded.cache_clear()
    yield
    cpu_library._loaded.cache_clear()


@pytest.mark.skipif(cpu_library.library() is None, reason=f"no CPU kernels: {cpu_library.reason()}")
def test_instruction_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    formats()
    out = capsys.readouterr().out
    assert "fastest first: cpu, torch_int8, reference" in out
    assert f"{cpu_library.the_library().isa} (in use)" in out and "scalar" in out


def test_missing_kernels_are_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_library, "PATH", tmp_path / "none.so")
    formats()
    out = capsys.readouterr().out
    assert "fastest first: torch_int8, reference" in out
    assert "no CPU kernels" in out and "C++17 compiler" in out


@pytest.mark.parametrize(("forced", "names"), [("reference", "reference"), ("torch_int8", "torch_int8, reference")])
def test_a_chosen_backend_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forced: str, names: str
) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", forced)
    formats()
    out = capsys.readouterr().out
    assert f"kernels with COMPRESS_KERNEL={forced}, fastest first: {names}\n" in out
    assert "in use" not in out
