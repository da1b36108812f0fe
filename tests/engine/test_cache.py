import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.engine.cache import Cache
from compress.errors import OutputError


def test_a_step_runs_once_per_input(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []

    def build(folder: Path) -> dict[str, int]:
        calls.append(1)
        (folder / "a.txt").write_text("x")
        return {"answer": 42}

    cache.prepare()
    first, second = cache.step("work", {"n": 1}, build), cache.step("work", {"n": 1}, build)
    other = cache.step("work", {"n": 2}, build)
    assert (first.cached, second.cached, other.cached) == (False, True, False)
    assert len(calls) == 2
    assert first.folder == second.folder != other.folder
    assert second.result == {"answer": 42}
    assert [path.name for path in second.folder.iterdir()] == ["a.txt"]


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.prepare()

    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        cache.step("work", {}, build)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.prepare()

    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"the disk is full \(\d+ MB free\) \(free some space") as caught:
        cache.step("work", {}, build)
    assert caught.value.exit_code == 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_rubbish_of_dead_processes_goes_and_that_of_living_ones_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / "tmp" / str(pid) / "work").mkdir(parents=True)
    Cache(tmp_path).prepare()
    assert {path.name for path in (tmp_path / "tmp").iterdir()} == {str(os.getpid()), str(os.getppid())}


def test_a_folder_without_its_record_is_built_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.prepare()
    step = cache.step("work", {}, lambda folder: (folder / "a").write_text("1") and None)
    (step.folder.parent / "step.json").unlink()
    again = cache.step("work", {}, lambda folder: (folder / "a").write_text("2") and None)
    assert not again.cached
    assert (again.folder / "a").read_text() == "2"
