"""The command line as a person meets it: exit codes, one clear sentence per mistake, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.cli.console import parse_size, size_text, text_table
from compress.cli.main import main


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_run_prints_the_table_the_gates_and_the_report(capsys, recipe_file, tmp_path: Path) -> None:
    code, out, err = call(capsys, "run", recipe_file(), "--output", tmp_path / "out")
    assert code == 0
    assert "reference" in out
    assert "met     size_ratio of checkpoint" in out
    assert str(tmp_path / "out" / "report" / "report.html") in out
    assert "Traceback" not in err


def test_a_missed_gate_exits_one(capsys, recipe_file, tmp_path: Path) -> None:
    path = recipe_file(gates=[{"metric": "size_ratio", "max": 0.01}])
    code, out, _ = call(capsys, "run", path, "--output", tmp_path / "out")
    assert code == 1
    assert "MISSED  size_ratio of checkpoint is" in out
    assert 'failures="1"' in (tmp_path / "out" / "report" / "junit.xml").read_text()


def test_json_output_is_json_alone(capsys, recipe_file, tmp_path: Path) -> None:
    code, out, err = call(capsys, "run", recipe_file(), "--output", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "tiny"
    assert err == ""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("stages:", "stagess:", [":12: unknown key `stagess`; did you mean `stages`?"]),
        ("granularity: group", "granularity: groups", [":16:", "did you mean `group`?"]),
        ("format: int4", "format: int44", [":15:", "int44"]),
        ("group: 8", "group: eight", [":17:", "expected", "'eight'"]),
        ("kind: quantize", "kind: quantise", [":13:", "did you mean `quantize`?"]),
        ("role: modulation", "role: skip", [":23: stages.0.rules.0: role `skip` matches no layer"]),
        ("kind: ddim", "kind: ddimm", ["did you mean `ddim`?"]),
        ("kind: noise_error", "kind: noise_eror", ["did you mean `noise_error`?"]),
        ("metric: size_ratio", "metric: size_ration", ["size_ratio"]),
        ("version: 1", "version: 7", [":1:", "version"]),
    ],
)
def test_mistakes_in_the_recipe(capsys, recipe_file, tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    path = edit(recipe_file(), old, new)
    for command in (["check", path], ["run", path, "--output", tmp_path / "out"]):
        code, out, err = call(capsys, *command)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert all(part in err for part in expected), err
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_prune_after_quantize_is_refused_with_its_line(capsys, recipe_file) -> None:
    stages = [
        {"kind": "quantize", "weights": {"format": "int8"}},
        {"kind": "prune", "method": {"kind": "block_influence", "keep": 0.5}},
    ]
    code, _, err = call(capsys, "check", recipe_file(stages=stages))
    assert code == 2
    assert "`prune` must come before `quantize`" in err
    assert "recipe.yaml:16:" in err


@pytest.mark.parametrize("method", [{"kind": "nearst"}, {"kind": "nearest", "iterations": 5}, {}])
def test_unknown_methods_and_their_keys(capsys, recipe_file, method: dict[str, object]) -> None:
    stages = [{"kind": "quantize", "method": method, "weights": {"format": "int8"}}]
    code, _, err = call(capsys, "check", recipe_file(stages=stages))
    assert code == 2
    assert ("nearest" in err) if "iterations" not in method else ("unknown key `iterations`" in err)


def test_a_model_that_is_not_there(capsys, recipe_file, tmp_path: Path) -> None:
    code, _, err = call(capsys, "run", recipe_file(model={"source": "nowhere/model"}), "--output", tmp_path / "out")
    assert code == 2
    assert "nowhere/model: no such folder" in err
    code, _, err = call(capsys, "check", recipe_file(model={"source": "zoo://digits-dti"}))
    assert code == 2
    assert "did you mean zoo://digits-dit?" in err


def test_a_full_disk(capsys, recipe_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("compress.checkpoint.writer.save_file", full)
    code, _, err = call(capsys, "run", recipe_file(), "--output", tmp_path / "out")
    assert code == 3
    assert "the disk is full (" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "checkpoint").exists()
    monkeypatch.undo()
    assert call(capsys, "run", recipe_file(), "--output", tmp_path / "out")[0] == 0


def test_the_memory_budget_has_its_own_code(capsys, recipe_file, tmp_path: Path) -> None:
    for command in (["check", recipe_file()], ["run", recipe_file(), "--output", tmp_path / "out"]):
        code, _, err = call(capsys, *command, "--memory-budget", "10MB")
        assert code == 4
        assert "budget is" in err
    assert not (tmp_path / "out").exists()


def test_wrong_command_lines(capsys, recipe_file) -> None:
    assert call(capsys, "run")[0] == 2
    assert call(capsys, "rnu", recipe_file())[0] == 2
    assert call(capsys, "check", recipe_file(), "--memory-budget", "lots")[0] == 2
    code, _, err = call(capsys, "check", recipe_file(), "--set", "stages.0.weights.formt=int4")
    assert code == 2
    assert "did you mean `format`?" in err


def test_set_changes_a_key(capsys, recipe_file) -> None:
    code, out, _ = call(capsys, "check", recipe_file(), "--set", "stages.0.weights.group=16")
    assert code == 0
    assert "int4 group 16 · int8 tensor static" in out


def test_debug_shows_the_traceback(recipe_file) -> None:
    path = edit(recipe_file(), "stages:", "stagess:")
    done = subprocess.run(
        [sys.executable, "-m", "compress", "check", str(path), "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_check_on_dit_xl_2_is_quick_and_small() -> None:
    """Configuration only: under 10 s and 1 GB (measured by the kernel)."""
    code = (
        "import resource, sys, time\nstart = time.monotonic()\nfrom compress.cli.main import main\n"
        "try:\n    main(['check', 'recipes/dit-xl-2-w4a8.yaml'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        # Not ru_maxrss on Linux: it begins with what the process that forked this one had.
        "status = dict(line.split(':', 1) for line in open('/proc/self/status')) if sys.platform == 'linux' else {}\n"
        "most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "peak = int(status['VmHWM'].split()[0]) * 1024 if status else most\n"
        "print('cpu', time.process_time(), 'bytes', peak)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert "transformer_blocks.27.ff.net.2" in done.stdout
    assert "int4 group 64 · int8 token" in done.stdout
    assert "no weights here" in done.stdout
    _, seconds, _, peak = done.stdout.strip().splitlines()[-1].split()
    assert int(peak) < 10**9
    assert float(seconds) < 10


@pytest.mark.parametrize("command", ["methods", "formats", "zoo", "schema"])
def test_catalogues(capsys, command: str) -> None:
    code, out, _ = call(capsys, command)
    assert code == 0
    expected = {"methods": "nearest (quantize)", "formats": "fp4_e2m1", "zoo": "zoo://digits-dit", "schema": "$schema"}
    assert expected[command] in out
    if command != "schema":
        assert json.loads(call(capsys, command, "--json")[1])


def test_inspect_a_model_and_a_checkpoint(capsys, recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    code, out, _ = call(capsys, "inspect", dit_folder)
    assert code == 0
    assert "modulation" in out
    assert "MACs a forward" in out
    assert call(capsys, "run", recipe_file(evaluate=[]), "--output", tmp_path / "out")[0] == 0
    code, out, _ = call(capsys, "inspect", tmp_path / "out" / "checkpoint", "--json")
    assert code == 0
    assert json.loads(out)["family"] == "dit"


def test_sample_and_compare(capsys, recipe_file, tmp_path: Path) -> None:
    call(capsys, "run", recipe_file(), "--output", tmp_path / "a")
    call(capsys, "run", recipe_file(file="b.yaml", name="other", seed=1), "--output", tmp_path / "b")
    grid = tmp_path / "grid.png"
    code, _, _ = call(
        capsys, "sample", tmp_path / "a", "--output", grid, "--steps", 2, "--count", 4, "--classes", "1,2"
    )
    assert code == 0
    assert grid.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, "compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert code == 0
    assert "tiny" in out
    assert "other" in out
    assert (tmp_path / "c" / "comparison.html").is_file()
    code, _, err = call(capsys, "compare", tmp_path / "nothing")
    assert code == 2
    assert "does not exist" in err


def test_mistakes_of_sample(capsys, dit_folder: Path, tmp_path: Path) -> None:
    code, _, err = call(capsys, "sample", dit_folder, "--classes", "a,b", "--output", tmp_path / "x.png")
    assert code == 2
    assert "is no list of class numbers" in err
    assert not (tmp_path / "x.png").exists()


def test_out_of_memory_has_its_own_code(capsys, recipe_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*arguments: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("compress.stages.quantize.write_quantized_component", starve)
    code, _, err = call(capsys, "run", recipe_file(), "--output", tmp_path / "out")
    assert code == 4
    assert "out of memory" in err


def test_console_helpers() -> None:
    assert [size_text(n) for n in (12, 1234, 5.6e6, 7.89e9)] == ["12 B", "1.23 kB", "5.6 MB", "7.89 GB"]
    assert [parse_size(text) for text in ("8GB", "512 MiB", "100")] == [8 * 10**9, 512 * 2**20, 100]
    with pytest.raises(ValueError, match="is no size"):
        parse_size("lots")
    assert text_table(["a", "bb"], [("x", 1), ("yy", 22)], right=(1,)).splitlines()[2:] == ["x    1", "yy  22"]
