"""Evaluate entries on a tiny model whose artefacts are known exactly."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import tiny_dit

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.sampler import Sampler, denoise_with
from compress.engine.cache import Cache
from compress.engine.measure import KeyedSteps
from compress.errors import RecipeError
from compress.export.session import kernels_available
from compress.kernels.backends import kernels_in_use
from compress.models.layout import component_folder, scheduler_config
from compress.models.source import open_adapter, resolve
from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG
from compress.stages.evaluate import images, noise, speed
from compress.stages.evaluate.bank import images as draw
from compress.stages.evaluate.base import EvaluationContext, Subject
from compress.stages.evaluate.parity import stock_tables
from compress.stages.evaluate.settings import Generation, Latency, NoiseError, Paired, onnx_count


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    """The 16x16 model as reference; as checkpoint the same one with its prediction moved by 0.1."""
    folder = write_bundled_model(tiny_dit(size=16), tmp_path / "model", SCHEDULER_CONFIG)
    adapter = open_adapter(resolve(str(folder)))
    model = adapter.load()
    denoise = denoise_with(adapter, model)

    def moved(sample: torch.Tensor, t: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        return denoise(sample, t, condition) + 0.1

    def subject(artefact, key, function) -> Subject:
        return Subject(artefact, key, lambda: function, component_folder(adapter.source), {"source": str(folder)})

    cache = Cache(tmp_path / "cache")
    cache.prepare()
    return EvaluationContext(
        adapter=adapter,
        subjects={"reference": subject("reference", "a", denoise), "checkpoint": subject("checkpoint", "b", moved)},
        sampler=Sampler(steps=3, guidance_scale=1.5),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        judge="digits-classifier",
        steps=KeyedSteps(cache),
        seed=0,
    )


def test_noise_error_is_the_error_of_epsilon(context: EvaluationContext) -> None:
    """Epsilon = sqrt(abar) v + sqrt(1 - abar) x, so moving v by 0.1 moves it by sqrt(abar) 0.1."""
    found = noise.run(NoiseError(n=24, bands=3), context)
    main = [m for m in found.metrics if m.name == "noise_error" and m.artefact == "checkpoint" and not m.labels]
    bands = [m for m in found.metrics if m.artefact == "checkpoint" and "band" in m.labels]
    assert len(main) == 1
    assert len(bands) == 3
    schedule = context.adapter.noise_schedule()
    for band in bands:
        sigma = (float(band.labels["sigma_low"]) + float(band.labels["sigma_high"])) / 2
        signal = 1 / (1 + sigma**2)  # abar of a variance-preserving step
        assert band.value == pytest.approx(0.01 * signal, rel=0.05)
    assert schedule.prediction == "v_prediction"
    floor = [m for m in found.metrics if m.artefact == "reference" and "floor" in m.labels]
    assert floor
    assert all(m.value < 1e-6 for m in floor)


def test_images_do_not_depend_on_how_many_are_drawn(context: EvaluationContext) -> None:
    few, many = draw(context, "reference", 10), draw(context, "reference", 70)
    assert torch.equal(few, many[:10])
    assert many.shape == (70, 1, 16, 16)
    before = len(list(context.steps.cache.root.glob("images-reference-*")))
    draw(context, "reference", 70)
    assert len(list(context.steps.cache.root.glob("images-reference-*"))) == before == 2


def test_paired_and_generation_report_every_artefact(context: EvaluationContext) -> None:
    paired = images.run_paired(Paired(n=16), context)
    names = {(m.name, m.artefact) for m in paired.metrics if not m.labels}
    assert names == {("psnr", "checkpoint"), ("ssim", "checkpoint")}
    assert [figure.title for figure in paired.figures] == ["reference", "checkpoint"]
    generation = images.run_generation(Generation(n=64), context)
    names = {(m.name, m.artefact) for m in generation.metrics if not m.labels}
    assert {("class_accuracy", "reference"), ("class_accuracy_drop", "checkpoint"), ("kid", "checkpoint")} <= names
    assert ("frechet_increase", "checkpoint") in names


def test_generation_without_a_classifier_is_a_recipe_error(context: EvaluationContext) -> None:
    context.judge = None
    with pytest.raises(RecipeError, match="needs a classifier"):
        images.run_generation(Generation(n=64), context)


def test_the_onnx_model_draws_fewer_images_by_default() -> None:
    assert onnx_count(Generation(n=1000)) == 256
    assert onnx_count(Paired(n=32)) == 32
    assert onnx_count(Generation(n=1000, onnx_n=500)) == 500


def test_artefacts_are_opened_once_and_released(context: EvaluationContext) -> None:
    opened = []
    reference = context.subjects["reference"]
    counted = partial(lambda: opened.append(1) or reference.open())
    context.subjects = {"reference": Subject("reference", "a", counted, reference.folder, {})}
    context.denoiser("reference")
    context.denoiser("reference")
    assert len(opened) == 1
    context.close()
    context.denoiser("reference")
    assert len(opened) == 2


@pytest.mark.parametrize("operators", ["compress", "stock"])
def test_latency_says_what_computed(
    context: EvaluationContext, operators: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a table: the main value of a metric has no labels."""
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)
    (tmp_path / "export.json").write_text(json.dumps({"version": 1, "operators": operators}))
    monkeypatch.setattr(speed, "OnnxDenoiser", lambda folder, **named: context.denoiser("checkpoint"))
    context.subjects = {**context.subjects, "onnx": Subject("onnx", "c", lambda: None, tmp_path, {})}
    found = speed.run(Latency(batch=2, threads=1, rounds=3, memory=False), context)
    assert {(m.name, m.artefact) for m in found.metrics} >= {("latency_ms", "onnx"), ("latency_speedup", "onnx")}
    assert not any(metric.labels for metric in found.metrics)
    ours = operators == "compress" and kernels_available()
    assert found.tables[0].rows == [
        ["reference", "PyTorch"],
        ["checkpoint", f"PyTorch, kernels {kernels_in_use()}"],
        ["onnx", f"onnxruntime, kernels {kernels_in_use()}" if ours else "onnxruntime, standard operators"],
    ]
    assert found.tables[0].note == "Batch 2, 1 threads, 3 interleaved rounds."


def test_alike_layers_of_a_stock_export_share_a_row() -> None:
    layers = [
        {"layer": "a", "became": "MatMulInteger", "differs": []},
        {"layer": "b", "became": "MatMulNBits", "differs": ["rounds in blocks", "takes 8 bits"]},
        {"layer": "c", "became": "MatMulInteger", "differs": []},
    ]
    (table,) = stock_tables(layers)
    assert table.rows == [
        ["MatMulInteger", 2, "a", "nothing"],
        ["MatMulNBits", 1, "b", "rounds in blocks; takes 8 bits"],
    ]
    assert stock_tables([]) == []
