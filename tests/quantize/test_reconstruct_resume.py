"""A run that is killed continues inside the stage and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from reconstruct_toys import all_codes, all_steps, reconstruction
from safetensors.torch import load_file

from compress.quantize.reconstruct import Finished, Reconstruction, RoundingSettings, StepSettings

ROUNDING = RoundingSettings(iterations=15, batch_size=16, learning_rate=5e-2)
STEPS = StepSettings(iterations=10, batch_size=16, learning_rate=2e-3)


def run(engine: Reconstruction, pause: float = 0.0) -> Reconstruction:
    for unit in engine.units:
        engine.learn_rounding(unit, ROUNDING)
        time.sleep(pause)
    for unit in engine.units:
        engine.learn_steps(unit, STEPS, asymmetric=True)
        time.sleep(pause)
    return engine


def assert_same(one: Reconstruction, other: Reconstruction) -> None:
    assert all(torch.equal(a, b) for a, b in zip(all_codes(one), all_codes(other), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(all_steps(one), all_steps(other), strict=True))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def in_order(engine: Reconstruction) -> list[str]:
    """Files of a whole run in the order in which they are written."""
    return [f"{phase}-{unit.name}.safetensors" for phase in ("rounding", "steps") for unit in engine.units]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Reconstruction:
    """A run without interruption."""
    return run(reconstruction(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def no_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("it learns again")

    monkeypatch.setattr("compress.quantize.reconstruct.decide.fit_rounding", fail)
    monkeypatch.setattr("compress.quantize.reconstruct.decide.fit_steps", fail)


def test_what_is_finished_is_read_back(whole: Reconstruction, no_learning: None) -> None:
    work = whole.calibration.work
    assert files(work) == sorted(
        f"{phase}-{unit.name}.safetensors" for phase in ("rounding", "steps") for unit in whole.units
    )
    again = run(reconstruction(work))
    assert_same(again, whole)
    assert again.calibration.progress.lines == whole.calibration.progress.lines


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_run_continues_after_any_unit(count: int, whole: Reconstruction, tmp_path: Path) -> None:
    order = in_order(whole)
    for name in order[:count]:
        (tmp_path / name).write_bytes((whole.calibration.work / name).read_bytes())
    (tmp_path / order[count]).write_bytes(b"torn")
    assert_same(run(reconstruction(tmp_path)), whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"mode": "compat"}, {"rows": 32}, {"trajectory": "other"}])
def test_what_belongs_to_another_run_is_learned_anew(change, whole: Reconstruction, no_learning: None) -> None:
    engine = reconstruction(whole.calibration.work, **change)
    with pytest.raises(AssertionError, match="it learns again"):
        engine.learn_rounding(engine.units[0], ROUNDING)


def test_other_settings_are_learned_anew(whole: Reconstruction, no_learning: None) -> None:
    engine = reconstruction(whole.calibration.work)
    with pytest.raises(AssertionError, match="it learns again"):
        engine.learn_rounding(engine.units[0], ROUNDING.model_copy(update={"iterations": 16}))


def test_a_unit_learns_the_same_whatever_was_learned_after_it(whole: Reconstruction, tmp_path: Path) -> None:
    """Mini-batches belong to seed, unit and phase: here the last unit comes first."""
    engine = reconstruction(tmp_path)
    engine.learn_rounding(engine.units[-1], ROUNDING)
    engine.learn_rounding(engine.units[0], ROUNDING)
    first = engine.units[0].layers[0]
    for part, expected in zip(engine.layers[first].operators(), whole.layers[first].operators(), strict=True):
        assert torch.equal(part.codes(), expected.codes())


def test_finished_files_know_what_they_belong_to(tmp_path: Path) -> None:
    finished = Finished(tmp_path / "work")
    assert finished.load("steps-block", "key") is None
    tensors = {"scale.0": torch.rand(3), "scale.1": torch.rand(2, 2)[:, 0]}
    finished.save("steps-block", "key", tensors)
    assert finished.load("steps-block", "another") is None
    found = finished.load("steps-block", "key")
    assert found is not None and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


KILLED = """
import sys
from pathlib import Path
import torch
sys.path[:0] = sys.argv[2:]
torch.set_num_threads(int(sys.argv[1]))
from reconstruct_toys import reconstruction
from test_reconstruct_resume import run
run(reconstruction(Path(sys.argv[4])), pause=0.1)
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(whole: Reconstruction, tmp_path: Path) -> None:
    here = Path(__file__).parent
    arguments = [str(torch.get_num_threads()), str(here), str(here.parent), str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=here.parents[1])
    stop_after = 1 + os.getpid() % 6  # a random unit, of either phase
    try:
        deadline = time.monotonic() + 120
        while len(files(tmp_path)) < stop_after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = files(tmp_path)
    assert stop_after <= len(kept) < 8
    assert_same(run(reconstruction(tmp_path)), whole)
    for name in files(tmp_path):
        one, other = load_file(tmp_path / name), load_file(whole.calibration.work / name)
        assert all(torch.equal(one[key], other[key]) for key in one if key != "report")
        assert torch.equal(one["report"][:-1], other["report"][:-1])  # the last number is seconds
