"""The table runner on tiny models: measuring, resuming, failing, rendering."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_unet2d_pipeline

from benchmarks.tables import measures, nearest
from benchmarks.tables.__main__ import TABLES, main, write
from benchmarks.tables.bench import Bench
from benchmarks.tables.measured import Measured
from benchmarks.tables.measures import Found
from benchmarks.tables.render import to_markdown
from benchmarks.tables.runner import Done, Options, Task, carry_out, run_table, tasks
from benchmarks.tables.table import Cell, Finding, Result, Table
from compress.calibration.sampler import Sampler
from compress.errors import RunError
from compress.evaluate.protocol import Protocol
from compress.recipe.model import Recipe
from compress.report.model import Metric

PROTOCOL = Protocol(
    sampler=Sampler(kind="ddim", steps=3, guidance_scale=1.5),
    pairs=24,
    bands=3,
    images=4,
    calibration_samples=4,
    headline_images=16,
)
STATIC = {"format": "int8", "granularity": "tensor", "mode": "static"}


def stage(bits: str, **activations: str) -> dict[str, object]:
    return {
        "kind": "quantize",
        "weights": {"format": f"int{bits}"},
        "activations": {"format": "int8", **activations},
        "rules": nearest.KEPT,
    }


@pytest.fixture
def table(tmp_path: Path, dit_folder: Path) -> Table:
    unet = tiny_unet2d_pipeline(tmp_path / "unet")
    cells = (
        Cell("dit", "W8A8", "channel", (stage("8"),)),
        Cell("dit", "W4A8", "channel", (stage("4"),)),
        Cell("dit", "W8A8", "static", (stage("8", **STATIC),)),
        Cell("unet", "W4A8", "channel", (stage("4"),)),
    )
    return Table("tiny", "Tiny", "A note.", {"dit": str(dit_folder), "unet": str(unet)}, cells)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path / "cache", protocol=PROTOCOL, headlines=False)


def measure(table: Table, options: Options) -> Measured:
    measured = Measured(table, options.protocol, facts={"commit": "abc"})
    for task in tasks(table, options):
        measured.take(task, carry_out(task, table, options))
    return measured


def test_a_table_is_measured_and_rendered(table: Table, options: Options, tmp_path: Path) -> None:
    measured = measure(table, options)
    assert measured.failures == {}
    few, many = (measured.results["dit", bits, "channel"] for bits in ("W4A8", "W8A8"))
    assert few.value("noise_error") > 4 * many.value("noise_error") > 0
    assert few.value("psnr") < many.value("psnr")
    assert few.value("size_ratio") < many.value("size_ratio")
    assert few.value("temporal_error") > many.value("temporal_error") > 0
    assert measured.results["unet", "W4A8", "channel"].value("temporal_error") > 0
    assert measured.seconds > 0
    write(measured, tmp_path / "tables")
    data = json.loads((tmp_path / "tables" / "tiny.json").read_text())
    assert [cell["column"] for cell in data["cells"]] == ["channel", "channel", "static", "channel"]
    assert data["sections"]["dit"]["sha256"] == measured.models["dit"] != measured.models["unet"]
    assert data["missing"] == []
    bands = [m for m in data["cells"][0]["metrics"] if m["name"] == "noise_error" and "band" in m["labels"]]
    assert len(bands) == 3
    text = (tmp_path / "tables" / "tiny.md").read_text()
    assert f"| W4A8 | {1000 * few.value('noise_error'):.3g} |" in text
    assert "float64 layers: noise error" in text


def test_finished_cells_are_not_measured_again(table: Table, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks(table, replace(options, only=("unet/*",)))[1]
    first = carry_out(task, table, options)
    monkeypatch.setattr(measures, "noise_error", lambda *arguments, **named: pytest.fail("measured twice"))
    assert carry_out(task, table, options) == first
    assert first.found is not None
    assert first.found.metrics


def test_splits_are_measured_on_the_layers_themselves(table: Table, options: Options) -> None:
    cells = tuple(
        Cell("unet", split, "W8A8", ({**stage("8", **STATIC), "split": split},)) for split in ("none", "concatenation")
    )
    measured = measure(replace(table, cells=cells), options)
    assert measured.failures == {}
    whole, divided = (measured.results["unet", split, "W8A8"] for split in ("none", "concatenation"))
    layers = {m.labels["layer"] for m in whole.metrics if m.name == "concatenation_error" and m.labels}
    assert layers
    assert all(name.startswith("up_blocks.") for name in layers)
    found = whole.find("concatenation_error")
    assert found is not None
    assert found.n == len(layers)
    assert 0 < divided.value("concatenation_error") < whole.value("concatenation_error") < 1
    assert "layers on a skip concatenation" in to_markdown(measured)


def test_noise_error_resamples_whole_trajectories(
    table: Table, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = measures.noise_error

    def spy(*arguments, **named):
        seen.append(named.get("groups"))
        return original(*arguments, **named)

    monkeypatch.setattr(measures, "noise_error", spy)
    assert carry_out(Task("ranking", "dit", table.cells[0]), table, options).failure == ""
    assert len(seen[0]) == PROTOCOL.pairs
    assert 1 < len(set(seen[0].tolist())) < PROTOCOL.pairs


def test_what_cannot_be_measured_is_said(table: Table, options: Options, capfd: pytest.CaptureFixture[str]) -> None:
    ours = Cell("dit", "W8A8", "channel", ({**stage("8"), "rules": [{"match": "nothing", "keep": True}]},))
    foreign = Cell("dit", "W8A8", "broken", ({"kind": "no such stage"},))
    spoilt = replace(table, cells=(ours, foreign))
    measured = measure(spoilt, options)
    assert "nothing" in measured.failures["dit/W8A8/channel (ranking)"]
    assert "ValidationError" in measured.failures["dit/W8A8/broken (ranking)"]
    assert "Traceback" in capfd.readouterr().err
    text = to_markdown(measured)
    assert "- dit/W8A8/channel (ranking): RecipeError" in text
    assert text.count("## Not measured") == 1


def test_a_cell_may_calibrate_otherwise_and_from_another_seed(table: Table, options: Options, tmp_path: Path) -> None:
    own = {"samples": 2, "timesteps": {"kind": "uniform", "count": 1}}
    other = replace(table.cells[2], calibration=own, seed=1)
    twice = replace(table, cells=(table.cells[2], other))
    assert other.name == "dit/W8A8/static seed 1"
    recipe = Bench(table.sections["dit"], PROTOCOL, tmp_path).recipe(other).recipe
    assert (recipe.seed, recipe.calibration.samples, recipe.calibration.timesteps.count) == (1, 2, 1)
    assert recipe.calibration.sampler == PROTOCOL.sampler
    measured = measure(twice, options)
    assert measured.failures == {}
    result = measured.results["dit", "W8A8", "static"]
    first, second = result.values("noise_error")
    assert first != second
    assert result.value("noise_error") == first
    assert result.mean("noise_error") == (first + second) / 2
    assert {metric.seed for metric in result.repeats[1] if metric.name == "noise_error"} == {0}  # the same evaluation
    assert "Seeds 0, 1 where a range is given" in to_markdown(measured)


def kill_or_fail(task: Task, table: Table, options: Options) -> Done:
    """Stands for `carry_out` in a worker: one cell kills its process, one fails, the rest are done."""
    if task.name == "dit/W4A8/channel (ranking)":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.name == "dit/W8A8/static (ranking)":
        return Done(None, "RunError: no")
    return Done(Found([Metric(name="noise_error", value=1.0, artefact="checkpoint")], 1.0, "model"))


def test_a_killed_worker_costs_its_own_cell_only(table: Table, options: Options) -> None:
    lines: list[str] = []
    found = list(run_table(table, options, lines.append, kill_or_fail))
    outcomes = {task.name: done.failure for task, done in found}
    assert len(found) == len(outcomes) == len(tasks(table, options)) == 6
    assert "killed" in outcomes.pop("dit/W4A8/channel (ranking)")
    assert outcomes.pop("dit/W8A8/static (ranking)") == "RunError: no"
    assert set(outcomes.values()) == {""}
    assert any("one at a time" in line for line in lines)
    assert lines[-1].startswith("[6/6]")


def test_order_and_choice_of_the_work() -> None:
    work = tasks(nearest.TABLE, Options(Path("unused")))
    parts = [task.part for task in work]
    assert parts == sorted(parts, key=["floors", "ranking", "headline", "seed"].index)
    assert parts.count("floors") == 3
    chosen = tasks(nearest.TABLE, Options(Path("unused"), only=("digits-unet/W4A8/*",), headlines=False))
    names = [task.name for task in chosen]
    assert names[:2] == ["digits-unet/full precision (floors)", "digits-unet/W4A8/tensor (ranking)"]
    assert len(names) == 6


def test_the_baseline_covers_what_it_must() -> None:
    for section in nearest.SECTIONS:
        names = {(cell.row, cell.column) for cell in nearest.TABLE.cells if cell.section == section}
        assert names >= {(bits, column) for bits in nearest.BITS for column in nearest.GRANULARITIES}
    for cell in nearest.TABLE.cells:
        data = {"name": "x", "model": {"source": "zoo://digits-dit"}, "stages": [dict(s) for s in cell.stages]}
        quantize = Recipe.model_validate(data).stages[0]
        assert quantize.weights.format == f"int{cell.row[1]}"
        assert quantize.activations.format == f"int{cell.row[3]}"
        assert (quantize.activations.mode == "static") == (cell.column == nearest.STATIC)
        assert cell.column.startswith(quantize.weights.granularity)


def result(error: float) -> Result:
    spread = {"ci95_low": error - 0.5, "ci95_high": error + 0.5}
    return Result((Metric(name="noise_error", value=error, spread=spread, artefact="checkpoint"),))


def test_findings_on_bits() -> None:
    ordered = {("digits-dit", bits, "channel"): result(e) for bits, e in (("W8A8", 1), ("W6A8", 2), ("W4A8", 3))}
    assert [f.holds for f in nearest.findings(ordered)] == ["yes"]
    turned = ordered | {("digits-dit", "W6A8", "channel"): result(3.9)}
    assert [f.holds for f in nearest.findings(turned)] == ["within intervals"]
    broken = ordered | {("digits-dit", "W6A8", "channel"): result(4.1)}
    assert [f.holds for f in nearest.findings(broken)] == ["no"]


def test_findings_on_granularity_and_outliers() -> None:
    columns = {("digits-unet", "W4A8", c): result(e) for c, e in (("group 32", 1), ("channel", 3), ("tensor", 9))}
    (found,) = nearest.findings(columns)
    assert (found.holds, found.evidence) == ("yes", "group 32 1, channel 3, tensor 9")
    for stressed, holds in ((9.0, "no"), (10.0, "yes")):
        static = {("digits-dit", "W8A8", nearest.STATIC): result(1.0)}
        static["digits-dit, outliers", "W8A8", nearest.STATIC] = result(stressed)
        assert [f.holds for f in nearest.findings(static)] == [holds]


def test_headline_verdicts(table: Table) -> None:
    cell = table.cells[0]
    drop = Metric(
        name="class_accuracy_drop", value=0.01, artefact="checkpoint", spread={"ci95_low": -0.01, "ci95_high": 0.03}
    )
    before = [
        Metric(name="class_accuracy", value=0.981, artefact="reference"),
        Metric(name="frechet_distance", value=0.25, artefact="reference"),
    ]
    others = [
        Metric(name=name, value=1.0, artefact="checkpoint", spread={"ci95_low": 0.5, "ci95_high": 1.5})
        for name in ("class_accuracy", "frechet_distance", "frechet_increase", "noise_error", "psnr", "size_ratio")
    ]
    measured = Measured(table, PROTOCOL, {("dit", "W8A8", "channel"): Result((drop, *others, *before))})
    assert measured.verdict(cell, "class_accuracy_drop") is None
    measured.full["dit"] = [
        Metric(name="class_accuracy", value=v, artefact="reference", labels={"seed": str(i)})
        for i, v in enumerate((0.97, 0.98, 0.99, 0.98, 0.97))
    ]
    verdict = measured.verdict(cell, "class_accuracy_drop")
    assert verdict is not None
    assert verdict.within
    text = to_markdown(measured)
    assert "1.00 ✓" in text
    assert "| full precision | 98.1 % |" in text


def test_a_headline_without_a_ranking_is_kept_but_not_shown(table: Table) -> None:
    metric = Metric(name="class_accuracy", value=0.9, artefact="checkpoint")
    measured = Measured(table, PROTOCOL, {("dit", "W8A8", "channel"): Result((metric,))})
    assert "dit/W8A8/channel" in measured.missing()
    assert "## dit" not in to_markdown(measured)


def test_another_model_in_the_same_section_is_refused(table: Table) -> None:
    measured = Measured(table, PROTOCOL)
    measured.take(Task("floors", "dit"), Done(Found([], 1.0, "old")))
    with pytest.raises(RunError, match="model changed"):
        measured.take(Task("floors", "dit"), Done(Found([], 1.0, "new")))


def test_a_table_names_its_cells_once() -> None:
    cell = Cell("a", "b", "c", ())
    with pytest.raises(ValueError, match="twice"):
        Table("t", "T", "", {"a": "zoo://digits-dit"}, (cell, cell))
    with pytest.raises(ValueError, match="unknown sections"):
        Table("t", "T", "", {}, (cell,))


def test_the_command_lists_and_measures(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at_once(table: Table, options: Options, say):
        for task in tasks(table, options):
            yield task, Done(None, "RunError: no")

    holds = replace(table, cells=table.cells[:1], findings=lambda found: [Finding("it snows", "no", "0 cm")])
    monkeypatch.setitem(TABLES, "tiny", holds)
    monkeypatch.setattr("benchmarks.tables.__main__.run_table", at_once)
    cache = ["--cache", str(tmp_path / "cache"), "--no-headlines"]
    assert main(["tiny", "--list", *cache]) == 0
    assert capsys.readouterr().out.splitlines() == ["dit/full precision (floors)", "dit/W8A8/channel (ranking)"]
    assert main(["tiny", "--output", str(tmp_path / "whole"), *cache]) == 1
    assert "it snows" in capsys.readouterr().out
    written = json.loads((tmp_path / "whole" / "tiny.json").read_text())
    assert set(written["failures"]) == {"dit/full precision (floors)", "dit/W8A8/channel (ranking)"}
    assert main(["tiny", "--output", str(tmp_path / "part"), "--minutes", "0", *cache]) == 1
    written = json.loads((tmp_path / "part" / "tiny.json").read_text())
    assert set(written["failures"]) == {"dit/full precision (floors)"}
    assert written["missing"] == ["dit/W8A8/channel"]
    main(["tiny", "--only", "dit/*", *cache])  # a part is kept apart from the published table
    assert (tmp_path / "cache" / "unfinished" / "tiny.md").is_file()
    with pytest.raises(SystemExit):
        main(["tiny", "--only", "nothing", *cache])
    assert "no cell of tiny fits nothing" in capsys.readouterr().err
