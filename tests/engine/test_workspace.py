from pathlib import Path

import pytest

from compress.engine.workspace import Workspace
from compress.errors import InputError, OutputError


def test_the_same_recipe_continues_and_another_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    assert workspace.claim("name: a\n", fresh=False) is False
    assert workspace.claim("name: a\n", fresh=False) is True
    with pytest.raises(InputError, match=r"output of another recipe .*--fresh"):
        workspace.claim("name: b\n", fresh=False)
    assert workspace.claim("name: b\n", fresh=True) is False


def test_fresh_removes_only_what_runs_make(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    workspace.claim("name: a\n", fresh=False)
    (tmp_path / "out" / "checkpoint").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty and no run made it \(it holds notes.txt\)"):
        workspace.claim("name: b\n", fresh=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.parametrize("name", ["checkpoint", "onnx", "report"])
def test_a_folder_that_only_looks_like_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious.pt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="no run made it"):
            Workspace(tmp_path).check("name: a\n", fresh=fresh)
    assert (tmp_path / name / "precious.pt").read_text() == "years of work"


def test_a_run_killed_while_it_wrote_the_lock_file_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.lock.yaml.part").write_text("name")
    assert Workspace(tmp_path).claim("name: a\n", fresh=False) is False


def test_a_damaged_part_is_built_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.claim("a", fresh=False)
    for damage in (Path.unlink, lambda path: path.write_text("")):
        workspace.publish("checkpoint", "k1", lambda folder: (folder / "f").write_text("whole") and None)
        damage(tmp_path / "checkpoint" / "f")
    workspace.publish("checkpoint", "k1", lambda folder: (folder / "f").write_text("whole") and None)
    assert (tmp_path / "checkpoint" / "f").read_text() == "whole"


def test_fresh_keeps_the_lock_that_is_held(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path / "out"), Workspace(tmp_path / "out")
    with first.exclusive():
        first.claim("a", fresh=False)
        first.claim("a", fresh=True)
        with pytest.raises(InputError, match="another process is running"), second.exclusive():
            pass


def test_a_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(InputError, match="choose another --output"):
            Workspace(tmp_path).claim("name: a\n", fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_publish_replaces_whole_parts_and_keeps_current_ones(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.claim("a", fresh=False)
    builds = []

    def build(text: str):
        def write(folder: Path) -> None:
            builds.append(text)
            (folder / "f").write_text(text)

        return write

    workspace.publish("checkpoint", "k1", build("one"))
    workspace.publish("checkpoint", "k1", build("never"))
    assert (tmp_path / "checkpoint" / "f").read_text() == "one"
    workspace.publish("checkpoint", "k2", build("two"))
    assert (tmp_path / "checkpoint" / "f").read_text() == "two"
    assert builds == ["one", "two"]


def test_a_failing_publish_keeps_the_old_part(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.claim("a", fresh=False)
    workspace.publish("checkpoint", "k1", lambda folder: (folder / "f").write_text("old") and None)

    def fail(folder: Path) -> None:
        (folder / "f").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="disk is full"):
        workspace.publish("checkpoint", "k2", fail)
    assert (tmp_path / "checkpoint" / "f").read_text() == "old"


def test_two_processes_do_not_share_an_output(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path / "out"), Workspace(tmp_path / "out")
    with first.exclusive(), pytest.raises(InputError, match="another process is running"), second.exclusive():
        pass
    with second.exclusive():
        pass
