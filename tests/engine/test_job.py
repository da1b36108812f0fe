"""Whole runs on a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_unet2d_pipeline

from compress.api import load, run
from compress.engine.job import run_recipe
from compress.engine.run import RunOptions
from compress.errors import InputError, MemoryBudgetError, ModelError, RecipeError
from compress.quantize.modules import QuantLinear
from compress.recipe.model import load_recipe
from compress.recipe.plan import make_plan


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file below a folder, except what the work folder holds."""
    files = [path for path in sorted(folder.rglob("*.safetensors")) if ".work" not in path.parts]
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_writes_everything_and_meets_its_gate(recipe_file, tmp_path: Path) -> None:
    outcome = run(recipe_file(), output=tmp_path / "out")
    assert outcome.exit_code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"checkpoint", "report", "recipe.lock.yaml", "run.log"} <= names
    report = {path.name for path in (tmp_path / "out" / "report").iterdir()}
    assert report == {"report.json", "report.md", "report.html", "junit.xml"}
    model = load(tmp_path / "out" / "checkpoint")
    assert any(isinstance(module, QuantLinear) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_plan_predicts_the_bytes_of_the_file(recipe_file, tmp_path: Path) -> None:
    path = recipe_file()
    plan = make_plan(load_recipe(path))
    run(path, output=tmp_path / "out")
    files = list((tmp_path / "out" / "checkpoint" / "transformer").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == plan.predicted_bytes


def test_a_second_run_repeats_nothing(recipe_file, tmp_path: Path) -> None:
    path = recipe_file()
    first = run(path, output=tmp_path / "out")
    before = hashes(tmp_path / "out")
    second = run(path, output=tmp_path / "out")
    assert [record.cached for record in first.report.stages] == [False, False]
    assert [record.cached for record in second.report.stages] == [True, True]
    assert hashes(tmp_path / "out") == before


def test_equal_recipes_give_equal_bytes(recipe_file, tmp_path: Path) -> None:
    path = recipe_file()
    run(path, output=tmp_path / "a")
    run(path, output=tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_another_seed_changes_the_static_scales(recipe_file, tmp_path: Path) -> None:
    run(recipe_file(), output=tmp_path / "a")
    run(recipe_file(seed=1), output=tmp_path / "b")
    assert hashes(tmp_path / "a") != hashes(tmp_path / "b")


def test_a_missed_gate_is_exit_code_one(recipe_file, tmp_path: Path) -> None:
    path = recipe_file(gates=[{"metric": "size_ratio", "max": 0.001}, {"metric": "psnr", "min": 10}])
    outcome = run(path, output=tmp_path / "out")
    assert outcome.exit_code == 1
    messages = [gate.message for gate in outcome.report.gates]
    assert "size_ratio of checkpoint is" in messages[0]
    assert "above the allowed 0.001" in messages[0]
    assert "psnr" in messages[1]
    assert "paired" in messages[1]
    assert "<failure" in (tmp_path / "out" / "report" / "junit.xml").read_text()


def test_pruning_then_quantizing(recipe_file, tmp_path: Path) -> None:
    stages = [
        {"kind": "prune", "method": {"kind": "block_influence", "keep": 0.67, "samples": 16}},
        {"kind": "quantize", "weights": {"format": "int8"}, "activations": {"format": "int8"}},
    ]
    path = recipe_file(stages=stages, evaluate=[])
    plan = make_plan(load_recipe(path))
    outcome = run(path, output=tmp_path / "out")
    model = load(tmp_path / "out" / "checkpoint")
    assert len(model.transformer_blocks) == 2
    assert outcome.report.stages[0].facts["blocks"] == "3 -> 2"
    assert outcome.report.stages[0].facts["removed"] == "1"
    size = outcome.report.find("size_bytes", "checkpoint")
    assert size is not None
    assert size.value == plan.predicted_bytes


def test_a_pruned_model_loads_in_plain_diffusers(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    """Depth pruning alone leaves nothing of ours in the checkpoint."""
    stages = [{"kind": "prune", "method": {"kind": "block_influence", "keep": 0.67, "samples": 16}}]
    run(recipe_file(stages=stages, evaluate=[], gates=[]), output=tmp_path / "out")
    from diffusers import DiTTransformer2DModel

    pruned = DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "checkpoint", subfolder="transformer")
    original = DiTTransformer2DModel.from_pretrained(dit_folder, subfolder="transformer")
    assert pruned.config.num_layers == 2
    assert torch.equal(pruned.transformer_blocks[1].ff.net[2].weight, original.transformer_blocks[2].ff.net[2].weight)


def test_memory_budget(recipe_file, tmp_path: Path) -> None:
    loaded = load_recipe(recipe_file())
    with pytest.raises(MemoryBudgetError, match="nothing was written") as caught:
        run_recipe(loaded, RunOptions(tmp_path / "out", memory_budget=10**6, quiet=True))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_missing_and_truncated_weights(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(dit_folder, broken)
    weights = next(broken.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    path = recipe_file(model={"source": str(broken)})
    with pytest.raises(ModelError, match="truncated"):
        run(path, output=tmp_path / "out")
    weights.unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        run(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_recipes_output_is_refused(recipe_file, tmp_path: Path) -> None:
    run(recipe_file(evaluate=[]), output=tmp_path / "out")
    with pytest.raises(InputError, match="another recipe"):
        run(recipe_file(evaluate=[], name="other"), output=tmp_path / "out")
    assert run(recipe_file(evaluate=[], name="other"), output=tmp_path / "out", fresh=True).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "unet"])
@pytest.mark.parametrize("marker", ["trajectory-*/chunk-00000.safetensors", "tmp/*/stage-0-quantize-*"])
def test_a_killed_run_continues_to_the_same_bytes(
    recipe_file, tmp_path: Path, dit_folder: Path, family: str, marker: str
) -> None:
    """SIGKILL during calibration, and during quantization."""
    source = dit_folder if family == "dit" else tiny_unet2d_pipeline(tmp_path / "tiny-unet")
    stage = {
        "kind": "quantize",
        "weights": {"format": "int4", "granularity": "group", "group": 8},
        "activations": {"format": "int8", "granularity": "tensor", "mode": "static"},
    }
    path = recipe_file(
        model={"source": str(source), "device": "cpu"},
        stages=[stage],
        evaluate=[],
        calibration={"sampler": {"kind": "ddim", "steps": 8, "guidance_scale": 1.5}, "samples": 160},
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    command = [sys.executable, "-m", "compress", "run", str(path), "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(undisturbed)], check=True, capture_output=True, env=environment)
    process = subprocess.Popen(
        [*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    while process.poll() is None and not list((killed / ".work" / "steps").glob(marker)):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (killed / "checkpoint").exists()
    done = subprocess.run([*command, str(killed)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert hashes(killed) == hashes(undisturbed)


def test_onnx_is_exported_measured_and_in_parity(recipe_file, tmp_path: Path) -> None:
    path = recipe_file(
        export={"onnx": {"operators": "compress"}},
        evaluate=[
            {"kind": "noise_error", "n": 24, "bands": 3},
            {"kind": "latency", "batch": 2, "threads": 1, "rounds": 3},
        ],
    )
    outcome = run(path, output=tmp_path / "out")
    report = outcome.report
    assert (tmp_path / "out" / "onnx" / "transformer" / "model.onnx").is_file()
    error = report.find("onnx_error", "onnx")
    assert error is not None
    table = next(table for table in report.tables if table.title == "ONNX parity")
    assert "Kept." in table.note
    worst = report.find("onnx_error", "onnx", of="worst operator")
    assert worst is not None
    assert worst.value <= 1e-5
    for artefact in ("reference", "checkpoint", "onnx"):
        for name in ("latency_ms", "peak_rss_mb", "size_bytes"):
            metric = report.find(name, artefact)
            assert metric is not None, (name, artefact)
            assert metric.value > 0
    assert report.find("bops", "checkpoint").value < report.find("bops", "reference").value


def test_onnx_with_stock_operators_says_what_layers_became(recipe_file, tmp_path: Path) -> None:
    report = run(recipe_file(export={"onnx": {"operators": "stock"}}, evaluate=[]), output=tmp_path / "out").report
    parity = next(table for table in report.tables if table.title == "ONNX parity")
    assert "Kept." in parity.note
    became = next(table for table in report.tables if table.title == "ONNX with stock operators")
    facts = json.loads((tmp_path / "out" / "onnx" / "transformer" / "export.json").read_text())
    assert sum(int(row[1]) for row in became.rows) == len(facts["layers"]) > 10
    stage = next(stage for stage in report.stages if stage.kind == "export")
    assert sum(count for name, count in stage.facts.items() if name.endswith(" nodes")) == len(facts["layers"])


def test_a_checkpoint_can_be_measured_and_exported_later(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    from compress.engine.artefact import evaluate_artefact, export_artefact, open_artefact

    run(recipe_file(evaluate=[], seed=5), output=tmp_path / "out")
    result = export_artefact(str(tmp_path / "out"), tmp_path / "out" / "onnx", 21)
    assert result.nodes_by_operator["QMatMul"] > 10
    report = evaluate_artefact(tmp_path / "out", str(dit_folder), tmp_path / "evaluation", 16, quiet=True)
    assert {metric.artefact for metric in report.metrics} == {"reference", "checkpoint", "onnx"}
    assert {metric.seed for metric in report.metrics if metric.name == "noise_error"} == {5}
    assert (tmp_path / "evaluation" / "report" / "report.html").is_file()
    opened = open_artefact(str(tmp_path / "out" / "onnx"))
    inputs = opened.adapter.example_inputs(2)
    assert opened.denoise(inputs.sample, inputs.timestep.float(), inputs.condition).shape == inputs.sample.shape


def test_what_is_done_to_the_output_does_not_reach_the_source(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    path = recipe_file(evaluate=[])
    before = hashes(dit_folder)
    run(path, output=tmp_path / "out")
    original = hashes(tmp_path / "out")
    for file in (tmp_path / "out" / "checkpoint").rglob("*.*"):
        file.write_text("") if file.is_file() else None
    assert hashes(dit_folder) == before
    again = run(path, output=tmp_path / "out")
    assert again.report.stages[0].cached
    assert hashes(tmp_path / "out") == original


def test_a_quantized_source_is_refused(recipe_file, tmp_path: Path) -> None:
    run(recipe_file(evaluate=[]), output=tmp_path / "out")
    again = recipe_file(model={"source": str(tmp_path / "out" / "checkpoint"), "device": "cpu"})
    with pytest.raises(RecipeError, match=r"stages\.0: the model is quantized already"):
        make_plan(load_recipe(again))


def test_cuda_that_is_not_there_is_a_recipe_error(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    if torch.cuda.is_available():
        assert run(recipe_file(model={"source": str(dit_folder), "device": "cuda"}), output=tmp_path / "out")
        return
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5: model\.device: this machine, or this torch, has no CUDA"):
        run(recipe_file(model={"source": str(dit_folder), "device": "cuda"}), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_entries_that_cannot_be_measured_are_refused_early(recipe_file) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.0: `generation` needs a classifier"):
        make_plan(load_recipe(recipe_file(evaluate=[{"kind": "generation"}])))


def test_a_damaged_trajectory_is_logged_again(recipe_file, tmp_path: Path) -> None:
    path = recipe_file(evaluate=[])
    run(path, output=tmp_path / "a")
    expected = hashes(tmp_path / "a")
    chunk = next((tmp_path / "a" / ".work" / "steps").glob("trajectory-*/chunk-*"))
    chunk.write_bytes(chunk.read_bytes()[:-8])
    import shutil

    for step in (tmp_path / "a" / ".work" / "steps").glob("stage-*"):
        shutil.rmtree(step)
    run(path, output=tmp_path / "a")
    assert hashes(tmp_path / "a") == expected


@pytest.mark.slow
def test_a_unet_from_end_to_end(recipe_file, tmp_path: Path) -> None:
    folder = tiny_unet2d_pipeline(tmp_path / "unet")
    stages = [
        {
            "kind": "quantize",
            "weights": {"format": "int8"},
            "activations": {"format": "int8", "granularity": "tensor", "mode": "static"},
            "rules": [{"role": "out_projection", "keep": True}],
        }
    ]
    path = recipe_file(model={"source": str(folder), "device": "cpu"}, stages=stages, export={"onnx": {}}, gates=[])
    report = run(path, output=tmp_path / "out").report
    assert report.find("noise_error", "onnx").value == pytest.approx(
        report.find("noise_error", "checkpoint").value, rel=0.2
    )
    assert load(tmp_path / "out" / "checkpoint").conv_in.spec.weights.format == "int8"


def test_a_bare_component_becomes_a_checkpoint(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(dit_folder / "transformer", bare)
    shutil.copyfile(dit_folder / "scheduler" / "scheduler_config.json", bare / "scheduler_config.json")
    run(recipe_file(model={"source": str(bare), "device": "cpu"}), output=tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint" / "scheduler" / "scheduler_config.json").is_file()
    assert load(tmp_path / "out" / "checkpoint").config.num_layers == 3


def test_bfloat16_models_export_and_measure(recipe_file, tmp_path: Path, dit_folder: Path) -> None:
    path = recipe_file(model={"source": str(dit_folder), "dtype": "bfloat16", "device": "cpu"}, export={"onnx": {}})
    report = run(path, output=tmp_path / "out").report
    assert report.find("onnx_error", "onnx") is not None
