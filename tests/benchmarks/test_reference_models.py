import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline

from benchmarks.reference_models import __main__ as command
from benchmarks.reference_models import measure
from benchmarks.reference_models.measure import Model, ReferenceModels, cached_run, floors, summarise
from benchmarks.reference_models.render import markdown
from compress.evaluate.frechet import distance
from compress.models.zoo.card import draw, load_pipeline
from compress.models.zoo.classifier import (
    classifier_folder,
    feature_statistics,
    judge,
    load_classifier,
    reference_features,
    reference_statistics,
)
from compress.report.model import Metric

N = 20


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny models under the names of the bundled ones."""
    folder = tmp_path / "zoo"
    tiny_dit_pipeline(folder / "digits-dit")
    tiny_unet2d_pipeline(folder / "digits-unet")
    monkeypatch.setattr(measure, "zoo_folder", lambda name: folder / name)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Every drawing as (images, steps, seed)."""
    calls: list[tuple[int, int, int]] = []

    def recording(pipeline: Any, labels: torch.Tensor, steps: int, guidance: float, seed: int, batch: int = 64) -> Any:
        calls.append((len(labels), steps, seed))
        return draw(pipeline, labels, steps, guidance, seed, batch)

    monkeypatch.setattr(measure, "draw", recording)
    return calls


@pytest.fixture
def run(zoo: Path, tmp_path: Path) -> Callable[..., ReferenceModels]:
    """Runs the command and reads what it wrote."""

    def start(*more: str) -> ReferenceModels:
        folders = ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "reports")]
        options = ["--images", str(N), "--seeds", "2", "--steps", "2", "3", "--threads", "1"]
        command.main(["digits-dit", "digits-unet", *options, *folders, *more])
        return ReferenceModels.model_validate_json((tmp_path / "reports" / "reference-models.json").read_bytes())

    return start


def test_every_model_steps_and_seed_is_a_run(run: Callable[..., ReferenceModels], tmp_path: Path) -> None:
    found = run()
    names = ["digits-dit", "digits-unet"]
    expected = [(name, steps, seed) for name in names for steps in (2, 3) for seed in (1, 2)]
    assert [(row.model, row.steps, row.seed) for row in found.runs] == expected
    for row in found.runs:
        assert (row.sampler, row.guidance, row.n, row.threads, row.batch) == ("DDIM", 1.5, N, 1, 64)
        assert row.seconds > 0 and row.cpu
        categories = [m.labels["category"] for m in row.metrics if m.labels]
        assert categories == [str(i) for i in range(10)]
        assert {"ci95_low", "ci95_high"} <= row.find("class_accuracy").spread.keys()
        assert "bootstrap_std" in row.find("frechet_distance").spread
    for name in names:
        with Image.open(tmp_path / "reports" / "images" / f"{name}-ddim3.png") as image:
            assert image.size == (10 * 8 * 4, 8 * 8 * 4)


def test_scores_are_those_of_the_images(zoo: Path, tmp_path: Path) -> None:
    row = cached_run(tmp_path / "cache", Model("digits-unet"), 2, 4, 1.5, N, 7)
    images = draw(load_pipeline(zoo / "digits-unet"), torch.arange(N) % 10, 2, 1.5, 4)
    features, logits = judge(load_classifier(), images)
    hits = [int(logits[i].argmax()) == i % 10 for i in range(N)]
    assert row.find("class_accuracy").value == pytest.approx(sum(hits) / N)
    threes = next(m for m in row.metrics if m.labels == {"category": "3"})
    assert threes.n == 2 and threes.value == pytest.approx((hits[3] + hits[13]) / 2)
    expected = distance(feature_statistics(features), reference_statistics("test"))
    assert row.find("frechet_distance").value == pytest.approx(expected, rel=1e-4)


def test_what_is_done_is_not_drawn_again(
    run: Callable[..., ReferenceModels], drawn: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    first = run()
    assert len([call for call in drawn if call[0] == N]) == 8
    (tmp_path / "cache" / "digits-dit-ddim3-seed2.json").unlink()
    (tmp_path / "cache" / "digits-unet-ddim2-seed1.json").write_text("{}")
    drawn.clear()
    second = run()
    assert [call for call in drawn if call[0] == N] == [(N, 2, 1), (N, 3, 2)]
    assert [row.metrics for row in second.runs] == [row.metrics for row in first.runs]


def test_other_weights_guidance_or_images_are_drawn_again(
    zoo: Path, tmp_path: Path, drawn: list[tuple[int, int, int]]
) -> None:
    def again(guidance: float = 1.5, n: int = N) -> None:
        cached_run(tmp_path / "cache", Model("digits-dit"), 2, 1, guidance, n, 64)

    again()
    again()
    assert len(drawn) == 1
    again(guidance=2.0)
    again(guidance=2.0, n=10)
    assert len(drawn) == 3
    tiny_dit_pipeline(zoo / "digits-dit", seed=9)
    again(guidance=2.0, n=10)
    assert len(drawn) == 4


def test_summaries_are_means_and_deviations_over_seeds(run: Callable[..., ReferenceModels]) -> None:
    found = run()
    assert found.summaries == summarise(found.runs) and len(found.summaries) == 4
    last = found.summaries[-1]
    assert (last.model, last.steps, last.n, last.seeds) == ("digits-unet", 3, N, [1, 2])
    values = [row.find("frechet_distance").value for row in found.runs[-2:]]
    frechet = next(entry for entry in last.over_seeds if entry.name == "frechet_distance")
    assert frechet.mean == pytest.approx(statistics.mean(values)) and frechet.sd == pytest.approx(
        abs(values[0] - values[1]) / 2**0.5
    )
    alone = summarise(found.runs[:1])[0]
    assert all(entry.sd is None for entry in alone.over_seeds)


def test_floors_are_what_real_digits_score() -> None:
    accuracy, some, everything = floors(classifier_folder(), 3000)
    features, labels = reference_features()
    assert accuracy.n == 2000 == some.n and accuracy.value > 0.985
    hits = load_classifier().head(features).argmax(1) == labels
    assert accuracy.value == pytest.approx(float(hits.double().mean()))
    assert some.value == pytest.approx(distance(feature_statistics(features), reference_statistics("train")))
    assert everything.value == pytest.approx(distance(reference_statistics("train"), reference_statistics("test")))
    assert everything.n == 60_000 and everything.value < some.value


def test_the_markdown_shows_what_the_json_holds(run: Callable[..., ReferenceModels], tmp_path: Path) -> None:
    found = run("--guidance", "2")
    text = (tmp_path / "reports" / "reference-models.md").read_text()
    assert text == markdown(found)
    assert f"digits-dit digits-unet --images {N} --seeds 2 --steps 2 3 --guidance 2 --batch 64 --threads 1" in text
    assert str(tmp_path) not in text
    assert "![digits-unet, DDIM](images/digits-unet-ddim3.png)" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) - 2 for table in tables] == [4, 3, 4, 8]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "±" in tables[0][2] and "| all training digits | all test digits | 60,000 |" in text


def test_a_single_seed_has_no_deviation(run: Callable[..., ReferenceModels], tmp_path: Path) -> None:
    found = run("--seeds", "1")
    assert all(entry.sd is None for summary in found.summaries for entry in summary.over_seeds)
    assert (
        "±" not in (tmp_path / "reports" / "reference-models.md").read_text().partition("## Real")[0].partition("|")[2]
    )


def test_by_class_adds_up_the_seeds(run: Callable[..., ReferenceModels]) -> None:
    found = run()
    zeros = [
        metric.value * metric.n
        for row in found.runs
        if (row.model, row.steps) == ("digits-dit", 2)
        for metric in row.metrics
        if metric.labels == {"category": "0"}
    ]
    line = next(
        line for line in markdown(found).partition("by class")[2].splitlines() if line.startswith("| digits-dit | 2 ")
    )
    assert line.split("|")[3].strip() == f"{sum(zeros) / 4:.3f}"


def test_senseless_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--seeds", "0"], ["--images", "1"]):
        with pytest.raises(SystemExit):
            command.main(["digits-dit", *options])
        assert "at least" in capsys.readouterr().err


def test_a_metric_in_the_report_has_its_n_and_seed(run: Callable[..., ReferenceModels], tmp_path: Path) -> None:
    run()
    data = json.loads((tmp_path / "reports" / "reference-models.json").read_text())
    metrics = [Metric.model_validate(metric) for row in data["runs"] for metric in row["metrics"]]
    assert metrics and all(metric.n in (2, N) and metric.seed in (1, 2) for metric in metrics)
