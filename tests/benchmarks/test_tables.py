"""The table runner on tiny models: measuring, resuming, rendering."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_unet2d_pipeline

from benchmarks.tables import measures, nearest
from benchmarks.tables.__main__ import TABLES, main, minutes_before, take, write
from benchmarks.tables.render import Measured, to_markdown
from benchmarks.tables.runner import Done, Options, Task, carry_out, tasks
from benchmarks.tables.table import Cell, Finding, Result, Table
from compress.calibration.sampler import Sampler
from compress.evaluate.protocol import Protocol
from compress.recipe.model import Recipe
from compress.report.model import Metric

PROTOCOL = Protocol(
    sampler=Sampler(kind="ddim", steps=3, guidance_scale=1.5),
    pairs=24,
    bands=3,
    images=4,
    noised=8,
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
        take(measured, task, carry_out(task, table, options))
    return measured


def test_a_table_is_measured_and_rendered(table: Table, options: Options, tmp_path: Path) -> None:
    measured = measure(table, options)
    assert measured.failures == {}
    few, many = (measured.results["dit", bits, "channel"].value("noise_error") for bits in ("W4A8", "W8A8"))
    assert few > 4 * many > 0
    assert measured.results["dit", "W4A8", "channel"].value("psnr") < measured.results["dit", "W8A8", "channel"].value(
        "psnr"
    )
    assert len(measured.full_values("dit", "denoising_loss")) == 5
    write(measured, tmp_path / "tables")
    data = json.loads((tmp_path / "tables" / "tiny.json").read_text())
    assert [cell["column"] for cell in data["cells"]] == ["channel", "channel", "static", "channel"]
    assert data["cells"][0]["within_noise"]["denoising_loss_increase"].keys() >= {"difference", "limit", "within"}
    assert data["missing"] == []
    text = (tmp_path / "tables" / "tiny.md").read_text()
    assert "| W4A8 |" in text
    assert "float64" in text


def test_finished_cells_are_not_measured_again(table: Table, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks(table, replace(options, only=("unet/*",)))[1]
    first = carry_out(task, table, options)
    monkeypatch.setattr(measures, "_ranking", lambda *arguments: pytest.fail("measured twice"))
    assert carry_out(task, table, options) == first
    assert first.metrics


def test_what_cannot_be_measured_is_said(table: Table, options: Options) -> None:
    broken = Cell("dit", "W8A8", "channel", ({**stage("8"), "rules": [{"match": "nothing", "keep": True}]},))
    spoilt = replace(table, cells=(broken,))
    measured = Measured(spoilt, PROTOCOL)
    take(measured, Task("ranking", "dit", broken), carry_out(Task("ranking", "dit", broken), spoilt, options))
    assert "nothing" in measured.failures["dit", "W8A8", "channel"]
    assert "- dit/W8A8/channel: RecipeError" in to_markdown(measured)


def test_order_and_choice_of_the_work() -> None:
    work = tasks(nearest.TABLE, Options(Path("unused")))
    parts = [task.part for task in work]
    assert parts == sorted(parts, key=["full precision", "ranking", "headline", "seed"].index)
    assert parts.count("full precision") == 3
    chosen = tasks(nearest.TABLE, Options(Path("unused"), only=("digits-unet/W4A8/*",), headlines=False))
    assert [task.name for task in chosen[:2]] == ["digits-unet/full precision", "digits-unet/W4A8/tensor (ranking)"]
    assert len(chosen) == 6


def test_the_baseline_covers_what_it_must() -> None:
    for section in nearest.SECTIONS:
        names = {(cell.row, cell.column) for cell in nearest.TABLE.cells if cell.section == section}
        assert names >= {(bits, column) for bits in nearest.BITS for column in nearest.GRANULARITIES}
    for cell in nearest.TABLE.cells[:34]:
        data = {"name": "x", "model": {"source": "zoo://digits-dit"}, "stages": [dict(s) for s in cell.stages]}
        quantize = Recipe.model_validate(data).stages[0]
        assert quantize.weights.format == f"int{cell.row[1]}"
        assert quantize.activations.format == f"int{cell.row[3]}"
        assert (quantize.activations.mode == "static") == (cell.column == nearest.STATIC)


def test_findings_follow_the_numbers() -> None:
    def result(error: float) -> Result:
        spread = {"ci95_low": error - 0.5, "ci95_high": error + 0.5}
        return Result((Metric(name="noise_error", value=error, spread=spread, artefact="checkpoint"),))

    place = "digits-dit"
    ordered = {(place, bits, "channel"): result(error) for bits, error in (("W8A8", 1), ("W6A8", 2), ("W4A8", 3))}
    assert [f.holds for f in nearest.findings(ordered)] == ["yes"]
    turned = ordered | {(place, "W6A8", "channel"): result(3.9)}
    assert [f.holds for f in nearest.findings(turned)] == ["within intervals"]
    broken = ordered | {(place, "W6A8", "channel"): result(4.1)}
    assert [f.holds for f in nearest.findings(broken)] == ["no"]
    static = {(s, "W8A8", nearest.STATIC): result(e) for s, e in ((place, 1.0), ("digits-dit, outliers", 9.0))}
    assert [f.holds for f in nearest.findings(static)] == ["no"]


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
    more = Metric(
        name="denoising_loss_increase", value=0.1, artefact="checkpoint", spread={"ci95_low": 0, "ci95_high": 1}
    )
    measured = Measured(table, PROTOCOL, {("dit", "W8A8", "channel"): Result((drop, *others, *before, more))})
    assert measured.verdict(cell, "class_accuracy_drop", "class_accuracy") is None
    measured.full["dit"] = [
        Metric(name="class_accuracy", value=v, artefact="reference", labels={"seed": str(i)})
        for i, v in enumerate((0.97, 0.98, 0.99, 0.98, 0.97))
    ]
    verdict = measured.verdict(cell, "class_accuracy_drop", "class_accuracy")
    assert verdict is not None
    assert verdict.within
    text = to_markdown(measured)
    assert "1.00 ✓" in text
    assert "| full precision | 98.1 % |" in text


def test_a_table_names_its_cells_once() -> None:
    cell = Cell("a", "b", "c", ())
    with pytest.raises(ValueError, match="twice"):
        Table("t", "T", "", {"a": "zoo://digits-dit"}, (cell, cell))
    with pytest.raises(ValueError, match="unknown sections"):
        Table("t", "T", "", {}, (cell,))


def test_the_command_lists_and_measures(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    holds = replace(table, cells=table.cells[:1], findings=lambda results: [Finding("it snows", "no", "0 cm")])
    monkeypatch.setitem(TABLES, "tiny", holds)
    assert main(["tiny", "--list", "--no-headlines"]) == 0
    assert capsys.readouterr().out.splitlines() == ["dit/full precision", "dit/W8A8/channel (ranking)"]

    def at_once(table: Table, options: Options, say):
        for task in tasks(table, options):
            say(task.name)
            yield task, Done([]) if task.cell is None else Done([], "RunError: no")

    monkeypatch.setattr("benchmarks.tables.__main__.run_table", at_once)
    assert main(["tiny", "--output", str(tmp_path), "--cache", str(tmp_path / "c"), "--no-headlines"]) == 1
    assert "it snows" in capsys.readouterr().out
    written = json.loads((tmp_path / "tiny.json").read_text())
    assert written["cells"][0]["failure"] == "RunError: no"
    written["facts"]["minutes"] = 7.5
    (tmp_path / "tiny.json").write_text(json.dumps(written))
    assert minutes_before(tmp_path / "tiny.json") == 7.5
    assert minutes_before(tmp_path / "none.json") == 0
