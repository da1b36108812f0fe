import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_dit, tiny_unet2d

from compress.models.zoo import card
from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.card import TrainingFacts, draw, load_pipeline, save_grid, write_card
from compress.models.zoo.classifier import judge, load_classifier
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG, share_embedder
from compress.models.zoo.digits_unet import SCHEDULER_CONFIG as UNET_SCHEDULER_CONFIG

SETTINGS = {"steps": 900, "batch": 16, "label_dropout": 0.25, "autocast": False}
FACTS = TrainingFacts(1234, 900, 3601.0, "an abacus", "python -m something", SETTINGS)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "STEPS", (2, 3))


def shared_dit() -> Any:
    model = tiny_dit()
    share_embedder(model)
    return model


CASES = {"digits-dit": (shared_dit, SCHEDULER_CONFIG), "digits-unet": (tiny_unet2d, UNET_SCHEDULER_CONFIG)}


def accuracy(folder: Path, n: int, steps: int) -> float:
    """Class accuracy of a folder's model, images drawn one by one."""
    pipeline, hits = load_pipeline(folder), 0
    for i in range(n):
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1_000_003 + i))
        image = pipeline([i % 10], 1.5, steps, latents=noise, output_type="pt").images * 2 - 1
        hits += int(judge(load_classifier(), image).logits.argmax()) == i % 10
    return hits / n


@pytest.mark.parametrize("name", CASES)
def test_the_scores_are_those_of_the_written_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, scheduler = CASES[name]
    model = build()

    def write_and_spoil(model: Any, folder: Path, config: Any) -> Path:
        write_bundled_model(model, folder, config)
        with torch.no_grad():
            [parameter.fill_(float("nan")) for parameter in model.parameters()]
        return folder

    monkeypatch.setattr(card, "write_bundled_model", write_and_spoil)
    lines = write_card(name, model, tmp_path, scheduler, FACTS, 20)
    text = (tmp_path / "README.md").read_text()
    for steps, line in zip((2, 3), lines, strict=True):
        percent = f"{100 * accuracy(tmp_path, 20, steps):.1f} %"
        assert line == f"{tmp_path}: class accuracy {percent} (DDIM {steps} steps, n = 20, seed 1)"
        assert f"| {steps} | 1.5 | 20 | {percent} |" in text


def test_the_card_of_a_dit(tmp_path: Path) -> None:
    model = shared_dit()
    write_card("digits-dit", model, tmp_path, SCHEDULER_CONFIG, FACTS, 10)
    text = " ".join((tmp_path / "README.md").read_text().split())
    copies = sum(parameter.numel() for parameter in tiny_dit().parameters())
    distinct = sum(parameter.numel() for parameter in model.parameters())
    assert distinct < copies
    assert f"{copies / 1e6:.2f} M parameters, {distinct / 1e6:.2f} M of them distinct." in text
    assert "# digits-dit A class-conditional diffusion transformer on 8x8" in text
    assert "2 blocks of width 16 with 2 heads, 16 tokens of 2x2 pixels." in text
    assert (
        "v prediction (Salimans and Ho 2022), cosine schedule (squaredcos_cap_v2), 25 % of the labels dropped." in text
    )
    assert "training split (1,234 digits)" in text
    assert "900 steps of 16 images in float32, 60 minutes on an abacus;" in text
    assert "U-Net" not in text and "python -m something" in text and "reports/reference-models.md" in text


def test_the_card_of_a_unet(tmp_path: Path) -> None:
    model = tiny_unet2d()
    write_card("digits-unet", model, tmp_path, UNET_SCHEDULER_CONFIG, FACTS, 10)
    text = " ".join((tmp_path / "README.md").read_text().split())
    assert "# digits-unet A class-conditional U-Net on 8x8" in text
    assert "levels of 16 and 32 channels, 1 residual blocks a level" in text and "at the lowest 1 of 2." in text
    assert "noise prediction (Ho et al. 2020), linear schedule (beta 0.0001 to 0.02), 25 % of" in text
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert f"{weights.stat().st_size / 1e6:.2f} MB of float16 weights" in text
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters." in text
    assert "distinct" not in text and "transformer" not in text.lower()


def test_the_card_keeps_the_settings_as_json(tmp_path: Path) -> None:
    write_card("digits-dit", tiny_dit(), tmp_path, SCHEDULER_CONFIG, FACTS, 2)
    text = (tmp_path / "README.md").read_text()
    assert json.loads(text.partition("```json\n")[2].partition("```")[0]) == SETTINGS
    assert max(map(len, text.splitlines())) <= 120


def test_the_grid_has_a_column_for_each_class(tmp_path: Path) -> None:
    write_card("digits-dit", tiny_dit(), tmp_path, SCHEDULER_CONFIG, FACTS, 2)
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (10 * 8 * 4, 5 * 8 * 4)
        pixels = np.asarray(image)
    labels = torch.arange(50) % 10
    drawn = draw(load_pipeline(tmp_path), labels, 3, 1.5, 0)[13, 0]  # second row, fourth column
    expected = ((drawn + 1) * 127.5).round()
    assert np.abs(pixels[32:64:4, 96:128:4].astype(float) - expected.numpy()).max() <= 1


def test_images_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    write_bundled_model(tiny_dit(), tmp_path, SCHEDULER_CONFIG)
    pipeline, labels = load_pipeline(tmp_path), torch.arange(7)
    whole = draw(pipeline, labels, 2, 1.5, 3)
    torch.testing.assert_close(draw(pipeline, labels, 2, 1.5, 3, batch=3), whole)
    torch.testing.assert_close(draw(pipeline, labels[:2], 2, 1.5, 3), whole[:2])
    assert not torch.allclose(draw(pipeline, labels, 2, 1.5, 4), whole)


def test_a_grid_is_read_row_by_row(tmp_path: Path) -> None:
    images = torch.full((6, 1, 2, 2), -1.0)
    images[4] = 3.0  # beyond white
    save_grid(images, tmp_path / "grid.png", columns=3, scale=1)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (4, 6) and (pixels[2:, 2:4] == 255).all() and pixels.sum() == 4 * 255
