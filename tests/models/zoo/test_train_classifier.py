from pathlib import Path

import numpy as np
import pytest
import torch

from compress.models.zoo.classifier import load_classifier, reference_features, reference_statistics
from compress.models.zoo.data import Split
from compress.models.zoo.train_classifier import (
    ClassifierSettings,
    augment,
    build,
    learning_rate,
    main,
    train,
    train_digits_classifier,
)

SETTINGS = ClassifierSettings(steps=30, batch=32, warmup=5)


def bars(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures `[n, 28, 28]` of two classes: a vertical and a horizontal bar at a random place."""
    draw = np.random.default_rng(seed)
    pictures, labels = np.zeros((n, 28, 28), np.uint8), draw.integers(0, 2, n)
    for picture, label, place in zip(pictures, labels, draw.integers(6, 18, n), strict=True):
        if label:
            picture[place : place + 4, 4:24] = 255
        else:
            picture[4:24, place : place + 4] = 255
    return pictures, labels


@pytest.fixture
def data(tmp_path: Path) -> str:
    (x_train, y_train), (x_test, y_test) = bars(300), bars(60, seed=1)
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(path)


def split(n: int = 40) -> Split:
    images = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Split(images, torch.arange(n) % 10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_moves_the_picture_and_keeps_black_black() -> None:
    black = torch.full((5, 1, 16, 16), -1.0)
    assert torch.equal(augment(black, SETTINGS, generator()), black)
    moved = augment(split(5).images, SETTINGS, generator())
    assert moved.shape == (5, 1, 16, 16) and float(moved.abs().max()) <= 1
    assert not torch.equal(moved, split(5).images)
    assert torch.equal(moved, augment(split(5).images, SETTINGS, generator()))


def test_augmentation_of_nothing_is_the_identity() -> None:
    none = ClassifierSettings(rotation=0, zoom=0, shift=0, shear=0)
    torch.testing.assert_close(augment(split(3).images, none, generator()), split(3).images, atol=1e-5, rtol=0)


def test_a_shift_is_in_pixels() -> None:
    only = ClassifierSettings(rotation=0, zoom=0, shift=1, shear=0)
    dot = torch.full((400, 1, 16, 16), -1.0)
    dot[:, 0, 8, 8] = 1
    weight = (augment(dot, only, generator()) + 1).squeeze(1)  # n 16 16
    centre = (weight.sum(1) * torch.arange(16)).sum(1) / weight.sum((1, 2))
    assert 0.8 < float((centre - 8).abs().max()) <= 1.0001


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    s = ClassifierSettings()
    rates = [learning_rate(step, s) for step in range(s.steps)]
    assert max(rates) == pytest.approx(s.learning_rate)
    assert rates[0] == pytest.approx(s.learning_rate / s.warmup) and rates[-1] < 1e-8


def test_untrained_weights_depend_on_the_seed_alone() -> None:
    a, b, c = build(0).state_dict(), build(0).state_dict(), build(1).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_training_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    short = ClassifierSettings(steps=2, batch=8)
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = train(split(), short).state_dict(), train(split(), short).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_learns_and_the_folder_holds_what_was_measured(data: str, tmp_path: Path) -> None:
    result = train_digits_classifier(data, tmp_path / "out", SETTINGS)
    assert result.accuracy > 0.9 and result.images == 60
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| test accuracy | {result.accuracy:.4f} |" in card and "| steps | 30 |" in card
    model = load_classifier(tmp_path / "out")
    features, labels = reference_features(tmp_path / "out")
    assert reference_statistics("train", tmp_path / "out").n == 300
    found = float((model.head(features).argmax(dim=1) == labels).double().mean())
    assert found == pytest.approx(result.accuracy)  # all 60 test images are kept


def test_command_line_writes_the_folder(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = str(torch.get_num_threads())
    command = ["x", "--data", data, "--output", str(tmp_path / "out"), "--steps", "1", "--threads", threads]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
