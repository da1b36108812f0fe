"""Finding, loading and choosing the C++ kernels, with and without a library."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpu_kernels import LIBRARY, needs_kernels, torch_threads
from kernel_cases import CASES, build

from compress.errors import FormatError, InputError, MemoryBudgetError, RunError
from compress.kernels import backends, cpu_abi, cpu_library, cpu_runner
from compress.kernels.backends import kernels_in_use, select
from compress.kernels.call import Facts, MatmulCall

W8A8 = Facts(k=128, n=64, bits=8, block_size=128, act_format="int8")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)
    cpu_library._loaded.cache_clear()
    cpu_library.announce.cache_clear()
    yield
    monkeypatch.undo()
    cpu_library._loaded.cache_clear()
    cpu_library.announce.cache_clear()
    backends._force_isa("")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place without a library; nothing requires one."""
    path = tmp_path / "libcompress_kernels.so"
    monkeypatch.setattr(cpu_library, "PATH", path)
    monkeypatch.delenv("COMPRESS_REQUIRE_KERNELS", raising=False)
    return path


def test_the_library_is_there_where_it_is_required() -> None:
    assert LIBRARY is not None or not cpu_library.required(), cpu_library.reason()


def test_without_a_library_the_others_compute_and_it_is_said_once(
    no_library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [select("qmatmul", W8A8).name for _ in range(2)] == ["torch_int8"] * 2
    assert len(caplog.records) == 1 and "slower" in caplog.text and str(no_library) in caplog.text
    assert backends.explain("qmatmul", W8A8)["cpu"].reason == cpu_library.reason()
    assert kernels_in_use().startswith("none (") and cpu_library.peak_gops(1) is None


def test_nothing_is_said_when_another_backend_is_asked_for(
    no_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    assert select("qmatmul", W8A8).name == "reference"
    assert not caplog.records and kernels_in_use() == "none (COMPRESS_KERNEL=reference)"


def test_a_required_library_that_is_missing_is_an_error(no_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_REQUIRE_KERNELS", "1")
    with pytest.raises(RunError, match=r"no CPU kernels: .*install again"):
        select("qmatmul", W8A8)


def test_a_damaged_library_is_a_missing_one_with_its_reason(no_library: Path) -> None:
    no_library.write_bytes(b"\x7fELF nothing more")
    assert cpu_library.library() is None and str(no_library) in cpu_library.reason()
    with pytest.raises(RunError, match="no CPU kernels"):
        cpu_library.the_library()


def test_an_instruction_set_without_a_library_is_an_error(no_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "scalar")
    with pytest.raises(InputError, match="COMPRESS_KERNEL=scalar: there are no CPU kernels"):
        select("qmatmul", W8A8)


@needs_kernels
def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_abi, "ABI", 99)
    assert cpu_library.library() is None
    assert "this package needs 99" in cpu_library.reason()


@needs_kernels
def test_the_environment_names_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = cpu_library.the_library()
    best, *_, last = library.isas
    monkeypatch.setenv("COMPRESS_KERNEL", last)
    assert select("qmatmul", W8A8).name == "cpu" and library.isa == last == kernels_in_use()
    monkeypatch.delenv("COMPRESS_KERNEL")
    assert select("qmatmul", W8A8).name == "cpu" and library.isa == best == kernels_in_use()


@needs_kernels
def test_an_instruction_set_that_the_cpu_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(isa for isa in cpu_library.ISAS if isa not in cpu_library.the_library().isas)
    monkeypatch.setenv("COMPRESS_KERNEL", missing)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"no {missing} kernels \(available: .*scalar"):
            select("qmatmul", W8A8)


@needs_kernels
def test_the_environment_counts_from_the_start() -> None:
    code = "from compress.kernels.backends import kernels_in_use; print(kernels_in_use())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(cpu_library.__file__).parents[2],
        env={"COMPRESS_KERNEL": "scalar", "PATH": ""},
    )
    assert done.stdout.strip() == "scalar"


@needs_kernels
def test_what_is_not_integer_is_refused_with_a_reason() -> None:
    library = cpu_library.the_library()
    assert "floating point" in library.refusal("qmatmul", Facts(k=64, n=8, bits=4, block_size=64))
    group = Facts(k=64, n=8, bits=4, block_size=64, act_format="int8", act_group=32)
    assert "each 32 positions" in library.refusal("qmatmul", group)
    gpu = Facts(k=64, n=8, bits=4, block_size=64, act_format="int8", device="cuda")
    assert "cuda" in library.refusal("qmatmul", gpu)
    assert library.refusal("qmatmul", W8A8) == ""


def test_statuses_become_errors() -> None:
    cases: list[tuple[int, type[Exception]]] = [
        (cpu_abi.INVALID, FormatError),
        (cpu_abi.UNSUPPORTED, cpu_library.RefusedValues),
        (cpu_abi.NO_MEMORY, MemoryBudgetError),
    ]
    for status, kind in cases:
        error = cpu_library._error(status, "k is 3", "compress::qmatmul")
        assert type(error) is kind and "compress::qmatmul: k is 3" in str(error)


@needs_kernels
def test_threads_are_pytorch_s() -> None:
    library = cpu_library.the_library()
    assert library.runner(1) is None
    assert library.runner(2) == library.runner(2) != library.runner(3)
    with torch_threads(3):
        assert library.compute(_w8a8()).isfinite().all()
    if sys.platform == "linux" and cpu_runner.openmp_runtime() is not None:
        assert cpu_runner.gomp_parallel() is not None


def test_without_openmp_there_is_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    class Functions:
        compress_pool_create = staticmethod(lambda threads: 1000 + threads)

    functions: Any = Functions()
    monkeypatch.setattr(cpu_runner, "gomp_parallel", lambda: None)
    assert cpu_runner.create(functions, 4) == 1004 and cpu_runner.create(functions, 1) is None
    monkeypatch.setattr(cpu_runner, "_MAPS", Path("/nowhere"))
    assert cpu_runner.openmp_runtime() is None


@needs_kernels
def test_measurements_are_plausible() -> None:
    peak = cpu_library.peak_gops(1, 0.01)
    assert peak is None or peak > 0.1
    assert 0 < cpu_library.the_library().time_product(_w8a8())[0] < 10


def _w8a8() -> MatmulCall:
    x, named = build(next(case for case in CASES if case.name == "w8a8"))
    return MatmulCall(x, **named)
