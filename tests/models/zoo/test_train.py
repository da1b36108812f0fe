import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_dit, tiny_unet2d

from compress.models.zoo import card
from compress.models.zoo.data import Split
from compress.models.zoo.train import (
    RECIPES,
    DenoiserTrainer,
    TrainSettings,
    command_text,
    learning_rate,
    machine_words,
    main,
    parse,
    restore_training,
    save_training,
    step_generator,
    train_denoiser,
)

STATE = "training.safetensors"
ABAR = torch.linspace(0.99, 0.01, 100)


def split(n: int = 40) -> Split:
    images = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Split(images, torch.arange(n) % 10)


@pytest.fixture
def data(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    x_train, x_test = draw.integers(0, 256, (2, 20, 28, 28)).astype(np.uint8)
    path = tmp_path / "digits.npz"
    np.savez(path, x_train=x_train, x_test=x_test, y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    return str(path)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both recipes train a tiny model instead, and cards are scored in few steps."""
    builders = {"digits-dit": tiny_dit, "digits-unet": tiny_unet2d}
    for name, builder in builders.items():
        build = lambda seed, builder=builder: builder(seed=seed, size=16).requires_grad_(True).train()  # noqa: E731
        monkeypatch.setitem(RECIPES, name, RECIPES[name]._replace(build=build))
    monkeypatch.setattr(card, "STEPS", (2, 3))


def metadata(folder: Path) -> dict[str, Any]:
    with safe_open(folder / STATE, "pt") as file:
        return json.loads(file.metadata()["training"])


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Ctrl-C comes in the fourth step."""
    step = DenoiserTrainer.train_step

    def stopping(self: DenoiserTrainer, images: Split) -> float:
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTrainer, "train_step", stopping)
        yield patch


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_resumed_training_is_the_undisturbed_one(name: str, tmp_path: Path, interrupted: pytest.MonkeyPatch) -> None:
    """Four steps straight, and two kept, one lost, two again, of the models that ship: bit-identical states."""
    torch.set_num_threads(1)
    settings = replace(RECIPES[name].settings, steps=4, batch=2, warmup=2)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(name, split(), tmp_path / "resumed", settings, save_every=2)
    assert metadata(tmp_path / "resumed")["step"] == 2
    (tmp_path / "resumed" / f"{STATE}.part").write_bytes(b"torn")
    interrupted.undo()
    trainer = train_denoiser(name, split(), tmp_path / "resumed", settings, save_every=2)
    train_denoiser(name, split(), tmp_path / "straight", settings, save_every=4)
    resumed, straight = load_file(tmp_path / "resumed" / STATE), load_file(tmp_path / "straight" / STATE)
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    assert trainer.step == trainer.ema.optimization_step == 4 == metadata(tmp_path / "resumed")["step"]
    untrained = list(RECIPES[name].build(settings.seed).parameters())
    assert any(not torch.equal(straight[f"model.{i}"], p) for i, p in enumerate(untrained))
    assert any(not torch.equal(straight[f"model.{i}"], straight[f"ema.{i}"]) for i in range(len(untrained)))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_state_holds_model_average_and_optimizer(name: str, tmp_path: Path) -> None:
    settings = replace(RECIPES[name].settings, steps=2, batch=4)
    trainer = train_denoiser(name, split(), tmp_path, settings, save_every=100)
    fresh = DenoiserTrainer(RECIPES[name].build(5), ABAR, 10, settings)
    assert restore_training(fresh, tmp_path) == metadata(tmp_path)["seconds"] > 0
    before, after = trainer.tensors(), fresh.tensors()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    count = len(trainer.parameters)
    assert len(before) == 5 * count  # model, average, and AdamW's step and two moments
    assert all(float(before[f"optimizer.{i}.step"]) == 2 for i in range(count))


@pytest.mark.usefixtures("tiny")
def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = TrainSettings(steps=1, batch=2)
    train_denoiser("digits-dit", split(), tmp_path, settings, save_every=1)
    with pytest.raises(SystemExit, match="another batch, seed"):
        train_denoiser("digits-dit", split(), tmp_path, replace(settings, batch=3, seed=1), save_every=1)


@pytest.mark.usefixtures("tiny")
def test_a_trained_state_trains_no_further(tmp_path: Path) -> None:
    settings = TrainSettings(steps=1, batch=2)
    trainer = train_denoiser("digits-dit", split(), tmp_path, settings, save_every=1)
    save_training(trainer, tmp_path, 7.0)
    again = train_denoiser("digits-dit", split(), tmp_path, settings, save_every=1)
    assert again.step == 1 and metadata(tmp_path)["seconds"] == 7.0


class Oracle(torch.nn.Module):
    """Knows that every image is `x0` and answers with the exact noise or v; keeps the labels that it was asked for."""

    def __init__(self, x0: torch.Tensor, prediction: str) -> None:
        super().__init__()
        self.x0, self.prediction, self.labels = x0, prediction, torch.tensor([])
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, **_: Any) -> Any:
        self.labels = class_labels
        signal = ABAR[timestep].sqrt()[:, None, None, None]
        sigma = (1 - ABAR[timestep]).sqrt()[:, None, None, None]
        noise = (x - signal * self.x0) / sigma
        return (noise if self.prediction == "epsilon" else signal * noise - sigma * self.x0,)


@pytest.mark.parametrize("answered", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("asked", ["v_prediction", "epsilon"])
def test_only_the_prediction_asked_for_has_no_loss(asked: str, answered: str) -> None:
    image = split(1).images
    same = Split(image.expand(10, 1, 16, 16), torch.arange(10))
    settings = TrainSettings(batch=16, prediction=asked, autocast=False)
    loss = DenoiserTrainer(Oracle(image, answered), ABAR, 10, settings).loss(same, step_generator(0, 0))
    assert float(loss) < 1e-6 if asked == answered else float(loss) > 0.05


@pytest.mark.parametrize(("rate", "dropped"), [(0.0, 0.0), (1.0, 1.0), (0.25, 0.25)])
def test_labels_are_dropped_at_the_rate_asked_for(rate: float, dropped: float) -> None:
    oracle = Oracle(split(1).images, "epsilon")
    settings = TrainSettings(batch=2000, prediction="epsilon", autocast=False, label_dropout=rate)
    DenoiserTrainer(oracle, ABAR, 10, settings).loss(split(), step_generator(0, 0))
    assert float((oracle.labels == 10).double().mean()) == pytest.approx(dropped, abs=0.05)


def test_learning_rate_warms_up_and_ends_at_a_fiftieth() -> None:
    s = RECIPES["digits-unet"].settings
    rates = [learning_rate(step, s) for step in range(s.steps)]
    assert max(rates) == pytest.approx(8e-4) and rates[0] == pytest.approx(8e-4 / s.warmup)
    assert rates[-1] == pytest.approx(0.02 * 8e-4, rel=1e-2)


def test_what_each_recipe_predicts_is_what_its_sampler_expects() -> None:
    for recipe in RECIPES.values():
        assert recipe.scheduler_config["prediction_type"] == recipe.settings.prediction


def test_a_command_names_only_what_differs_from_the_recipe() -> None:
    usual = parse(["digits-unet", "--output", "elsewhere", "--data", "/home/me/mnist.npz"])
    assert usual["settings"] == RECIPES["digits-unet"].settings
    command = "python -m compress.models.zoo.train digits-unet --data mnist.npz --output runs/digits-unet"
    assert command_text("digits-unet", usual["settings"], usual) == f"{command} --bundle digits-unet"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_command_can_be_parsed_back(name: str) -> None:
    changes = ["--steps", "7", "--learning-rate", "5e-4", "--ema", "0.9", "--no-autocast", "--threads", "2"]
    given = parse([name, "--output", "x", "--prediction", "epsilon", "--bundle-images", "50", *changes])
    command = command_text(name, given["settings"], given)
    assert "--data ylecun/mnist" in command and "--warmup" not in command
    again = parse(shlex.split(command)[3:])
    assert {key: again[key] for key in again if key not in ("output", "bundle")} == {
        key: given[key] for key in given if key not in ("output", "bundle")
    }
    assert again["settings"].prediction == "epsilon" and again["settings"].autocast is False


def test_an_unknown_prediction_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["digits-dit", "--output", "x", "--prediction", "sample"])
    assert "--prediction" in capsys.readouterr().err


def test_machine_in_words() -> None:
    torch.set_num_threads(1)
    assert machine_words("cpu") == "1 CPU thread"
    torch.set_num_threads(2)
    assert machine_words("cpu") == "2 CPU threads"


@pytest.mark.usefixtures("tiny")
def test_ctrl_c_says_how_to_go_on(data: str, tmp_path: Path, interrupted: pytest.MonkeyPatch) -> None:
    command = ["digits-dit", "--data", data, "--output", str(tmp_path / "run"), "--save-every", "1"]
    command += ["--steps", "4", "--batch", "2", "--threads", "1"]
    with pytest.raises(SystemExit, match="same command goes on"):
        main(command)
    assert metadata(tmp_path / "run")["step"] == 3
    interrupted.undo()
    main(command)
    assert metadata(tmp_path / "run")["step"] == 4


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("name", "component"), [("digits-dit", "transformer"), ("digits-unet", "unet")])
def test_the_command_line_trains_and_bundles(
    name: str, component: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--steps", "2", "--batch", "4"]
    command = [name, "--data", data, "--output", str(tmp_path / "run"), "--threads", "1", "--machine", "a slow box"]
    main([*command, *changes, "--bundle", str(tmp_path / "out"), "--bundle-images", "10"])
    text = (tmp_path / "out" / "README.md").read_text()
    again = f"--data digits.npz --output runs/{name} {' '.join(changes)} --threads 1 --bundle-images 10 --bundle {name}"
    assert f"    python -m compress.models.zoo.train {name} {again}\n" in text
    flat = " ".join(text.split())
    assert "(20 digits)" in flat and "2 steps of 4 images in bfloat16 autocast, 0 minutes on a slow box;" in flat
    assert capsys.readouterr().out.count("class accuracy") == 2
    # The moving average ships, in float16.
    weights = load_file(tmp_path / "out" / component / "diffusion_pytorch_model.safetensors")
    state, model = load_file(tmp_path / "run" / STATE), RECIPES[name].build(0)
    for i, (parameter, _) in enumerate(model.named_parameters()):
        assert torch.equal(weights[parameter], state[f"ema.{i}"].half()), parameter


@pytest.mark.usefixtures("tiny")
def test_a_model_trained_on_another_target_is_sampled_as_such(data: str, tmp_path: Path) -> None:
    command = ["digits-unet", "--data", data, "--output", str(tmp_path / "run"), "--threads", "1", "--steps", "1"]
    main([*command, "--prediction", "v_prediction", "--bundle", str(tmp_path / "out"), "--bundle-images", "2"])
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction" and config["beta_schedule"] == "linear"
    assert "Objective: v prediction" in (tmp_path / "out" / "README.md").read_text()
