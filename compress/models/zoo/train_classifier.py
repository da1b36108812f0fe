"""Train the bundled judge: `python -m compress.models.zoo.train_classifier --data mnist.npz --output DIR`.

Every random draw of step s comes from a generator seeded by (seed, s); with one thread a second run writes the same
weights. The folder holds config.json, model.safetensors (float16), statistics.safetensors and README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.models.zoo.classifier import (
    CONFIG_FILE,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    DigitClassifier,
    feature_statistics,
    judge,
    load_classifier,
)
from compress.models.zoo.data import MNIST_ID, Split, load_digits
from compress.models.zoo.train import step_generator

KEPT_FEATURES = 2000


@dataclass(frozen=True)
class ClassifierSettings:
    """What determines the trained classifier, besides the data."""

    steps: int = 7000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 200
    rotation: float = 12.0  # degrees, uniform in +-
    zoom: float = 0.12  # relative, uniform in +-, each axis
    shift: float = 1.0  # pixels, uniform in +-, each axis
    shear: float = 0.15  # horizontal offset per unit of height, uniform in +-
    seed: int = 0


class Trained(NamedTuple):
    """What a training run measured: test accuracy of the *stored* weights, images judged, seconds."""

    accuracy: float
    images: int
    seconds: float


def augment(images: Tensor, settings: ClassifierSettings, generator: torch.Generator) -> Tensor:
    """Images `[n, 1, h, w]` rotated, scaled, sheared and shifted at random, black outside."""
    s, size = settings, images.shape[-1]
    draws = torch.rand(6, len(images), generator=generator) * 2 - 1  # 6 n
    angle, shear = draws[0] * math.radians(s.rotation), draws[1] * s.shear
    zoom_x, zoom_y = 1 + draws[2] * s.zoom, 1 + draws[3] * s.zoom
    shift = draws[4:] * s.shift * 2 / size
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * zoom_x, (shear * cos - sin) * zoom_x, shift[0]], dim=-1)  # n 3
    row_y = torch.stack([sin * zoom_y, (shear * sin + cos) * zoom_y, shift[1]], dim=-1)
    grid = torch.nn.functional.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    # Zero padding is black only after black (-1) has been moved to zero.
    return torch.nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def learning_rate(step: int, settings: ClassifierSettings) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def build(seed: int) -> DigitClassifier:
    """An untrained classifier whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):  # the default initialisation is overwritten, but it draws
        model = DigitClassifier()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
        elif name == "head.bias":
            torch.nn.init.zeros_(parameter)
        if parameter.dim() == 4:  # halves the time of a step
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def train(split: Split, settings: ClassifierSettings, log: Callable[[str], None] = print) -> DigitClassifier:
    """A classifier trained on the split, in eval mode."""
    model = build(settings.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)
    recent = 0.0
    for step in range(settings.steps):
        generator = step_generator(settings.seed, step)
        pick = torch.randint(len(split.labels), (settings.batch,), generator=generator)
        images = augment(split.images[pick], settings, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), split.labels[pick])
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += float(loss.detach())
        if (step + 1) % 250 == 0:
            log(f"step {step + 1} loss {recent / 250:.4f}")
            recent = 0.0
    return model.eval()


def accuracy(model: DigitClassifier, split: Split) -> float:
    """Fraction of the split's images that the model names correctly."""
    return float((judge(model, split.images).logits.argmax(dim=1) == split.labels).double().mean())


def statistics_tensors(model: DigitClassifier, train_split: Split, test_split: Split, seed: int) -> dict[str, Tensor]:
    """Feature statistics of both splits, and features (float16) and labels of some test images, by stored name."""
    tensors: dict[str, Tensor] = {}
    for name, split in (("train", train_split), ("test", test_split)):
        features = judge(model, split.images).features
        statistics = feature_statistics(features)
        tensors |= {f"{name}.mean": statistics.mean, f"{name}.covariance": statistics.covariance}
        tensors[f"{name}.n"] = torch.tensor(statistics.n)
    pick = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:KEPT_FEATURES]
    return tensors | {"test.features": features[pick].half(), "test.labels": split.labels[pick].to(torch.uint8)}


def save_model(model: DigitClassifier, folder: Path) -> None:
    """Write config.json and model.safetensors (float16)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "DigitClassifier",
        "widths": list(model.widths),
        "classes": model.head.out_features,
        "image_size": 16,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / WEIGHTS_FILE)


def train_digits_classifier(data: str, output: Path, settings: ClassifierSettings) -> Trained:
    """Train, write the folder, and measure what was written."""
    train_split, test_split = load_digits(data, "train"), load_digits(data, "test")
    start = time.monotonic()
    model = train(train_split, settings, lambda line: print(line, flush=True))
    seconds = time.monotonic() - start
    save_model(model, output)
    stored = load_classifier(output)
    save_file(statistics_tensors(stored, train_split, test_split, settings.seed), output / STATISTICS_FILE)
    result = Trained(accuracy(stored, test_split), len(test_split.labels), seconds)
    parameters = sum(p.numel() for p in stored.parameters())
    (output / "README.md").write_text(model_card(result, settings, parameters), encoding="utf-8")
    return result


def model_card(result: Trained, settings: ClassifierSettings, parameters: int) -> str:
    """The README.md of the folder."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in asdict(settings).items())
    return f"""# digits-classifier

A small convolutional network that judges the digits which the bundled models draw: class accuracy from its logits,
Fréchet and kernel distances from the 96 averages before its last layer. It sees 16x16 pixels in [-1, 1], prepared from
MNIST by `compress/models/zoo/data.py`.

| measured on the stored float16 weights, computed in float32 | |
|---|---|
| test accuracy | {result.accuracy:.4f} |
| n (all MNIST test images) | {result.images} |
| parameters | {parameters} |
| training time | {result.seconds:.0f} s, {torch.get_num_threads()} thread(s), bfloat16 autocast |

    python -m compress.models.zoo.train_classifier --data mnist.npz --output digits-classifier

| setting | value |
|---|---|
{rows}

`statistics.safetensors` holds the mean and the unbiased covariance (float64) of the features of all train and all test
images, and the features (float16) and labels of {KEPT_FEATURES} test images. No image is shipped.

Limits: trained on real digits only, it gives some class to whatever it sees, so class accuracy must be read together
with a distance. Distances in these features compare only with distances in these features, at the same n.

Licence: Apache-2.0, like the package. Data: MNIST (LeCun, Cortes and Burges).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=MNIST_ID, help="an .npz with x_train, y_train, x_test, y_test, or a datasets id"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="another count changes the rounding, hence the weights")
    for name, value in asdict(ClassifierSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(given["threads"])
    settings = ClassifierSettings(**{name: given[name] for name in asdict(ClassifierSettings())})
    result = train_digits_classifier(given["data"], given["output"], settings)
    print(f"test accuracy {result.accuracy:.4f} of {result.images} images, {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
