import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.memory import PeakMemory, _Sampler, main, measure_peak, peak_metrics, run_measured

TARGETS = """
import sys
import time

kept_by_the_import = bytearray(30_000_000)

def hold(megabytes, seconds=0.0):
    print("noise on stdout")
    block = bytearray(int(megabytes * 1e6))
    time.sleep(seconds)
    return block

def look_at(path, size):
    import mmap
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
        return sum(view[i] for i in range(0, len(view), 4096))

def fail():
    raise RuntimeError("the reason")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "memory_targets.py").write_text(TARGETS)
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}


def test_peak_holds_what_was_allocated_and_the_baseline_what_was_imported(environment: dict[str, str]) -> None:
    found = measure_peak("memory_targets:hold", {"megabytes": 64}, environment=environment)
    assert 64 <= found.peak - found.baseline < 70
    assert found.baseline > 30
    assert found.resident >= found.peak - 1
    assert found.samples >= 1 and found.seconds > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells private pages from mapped files")
def test_mapped_files_do_not_count_on_linux(environment: dict[str, str]) -> None:
    # A large file of torch's, which lies on a disk wherever torch is installed; a temporary one may lie in memory.
    path = max((Path(torch.__file__).parent / "lib").iterdir(), key=lambda file: file.stat().st_size)
    arguments = {"path": str(path), "size": 50_000_000}
    found = measure_peak("memory_targets:look_at", arguments, environment=environment)
    assert found.source == "RssAnon+RssShmem"
    assert found.peak - found.baseline < 10
    assert found.resident > found.peak + 40


def test_sampling_sees_what_is_freed_before_the_end() -> None:
    readings = iter([5.0, 5.0, 80.0, 6.0])

    def read() -> float:
        return next(readings, 6.0)

    sampler = _Sampler(read, interval=0.001)
    sampler.start()
    while sampler.samples < 4:
        time.sleep(0.001)
    sampler.stop()
    assert sampler.peak == 80


def test_errors_of_the_child_reach_the_caller(environment: dict[str, str]) -> None:
    with pytest.raises(RunError, match="memory_targets:fail: the measured process failed: RuntimeError: the reason"):
        measure_peak("memory_targets:fail", environment=environment)
    with pytest.raises(RunError, match="no_such"):
        measure_peak("memory_targets:no_such", environment=environment)


def test_a_child_that_hangs_is_ended(environment: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"longer than 0\.1 s"):
        measure_peak("memory_targets:hold", {"megabytes": 1, "seconds": 60}, environment=environment, timeout=0.1)


@pytest.mark.parametrize("target", ["module", "module:", ":function", ""])
def test_targets_name_a_function(target: str) -> None:
    with pytest.raises(InputError, match="does not name a function"):
        measure_peak(target)


def test_the_child_prints_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--target", "platform:platform", "--arguments", '{"terse": true}'])
    printed = capsys.readouterr().out.strip()
    assert set(json.loads(printed)) == set(PeakMemory._fields)


def test_this_process_can_be_measured_too() -> None:
    found = run_measured(lambda size: bytearray(size), {"size": 40_000_000}, interval=0.001)
    assert found.peak - found.baseline > 30


def test_metrics_separate_imports_from_the_rest() -> None:
    runs = [PeakMemory(peak, 100, 900, 1, 50, "RssAnon+RssShmem") for peak in (300, 310, 350)]
    whole, above = peak_metrics(runs, artefact="checkpoint", labels={"batch": "1"})
    assert (whole.name, whole.value, whole.unit, whole.n) == ("peak_rss_mb", 310, "MB", 3)
    assert whole.spread == {"min": 300, "max": 350} and whole.labels == {"batch": "1"}
    assert above.value == 210 and above.labels == {"batch": "1", "part": "above_imports"}
    with pytest.raises(InputError, match="no memory measurement"):
        peak_metrics([], artefact="checkpoint")
