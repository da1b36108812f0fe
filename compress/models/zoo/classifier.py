"""The judge of generated digits: a small convolutional classifier whose penultimate features serve as statistics.

Inception features mean nothing on 16x16 digits and cannot be bundled; this network is the stand-in that ships.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import InputError, ModelError

CLASSIFIERS = {"digits-dit": "digits-classifier", "digits-unet": "digits-classifier"}
"""Which bundled classifier judges which bundled model; a model that is not listed has none."""

WEIGHTS_FILE, STATISTICS_FILE, CONFIG_FILE = "model.safetensors", "statistics.safetensors", "config.json"
_SPLITS = ("test", "train")


class FeatureStatistics(NamedTuple):
    """Mean `[d]` and unbiased covariance `[d, d]` of `n` feature vectors, float64."""

    mean: Tensor
    covariance: Tensor
    n: int


class ReferenceFeatures(NamedTuple):
    """Features `[n, d]` float32 and labels `[n]` int64 of real digits."""

    features: Tensor
    labels: Tensor


class Judgement(NamedTuple):
    """What the classifier says of n images: features `[n, d]` and logits `[n, classes]`, float32."""

    features: Tensor
    logits: Tensor


class DigitClassifier(nn.Module):
    """Three stages of two 3x3 convolutions (batch norm, ReLU), then a global average and one linear layer."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96), classes: int = 10) -> None:
        super().__init__()
        self.widths = widths
        stages, channels = [], 1
        for width in widths:
            stages.append(nn.Sequential(*_unit(channels, width), *_unit(width, width)))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(channels, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features `[n, d]` (d = the last width, all >= 0) of images `[n, 1, 16, 16]` in [-1, 1]."""
        x = images
        for index, stage in enumerate(self.stages):
            x = stage(nn.functional.max_pool2d(x, 2) if index else x)
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 1, 16, 16]` in [-1, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _unit(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def classifier_folder(name: str = "digits-classifier") -> Path:
    """The folder of a bundled classifier. Raises InputError for an unknown name."""
    if name not in CLASSIFIERS.values():
        known = ", ".join(sorted(set(CLASSIFIERS.values())))
        raise InputError(f"no bundled classifier is called `{name}`", hint=f"bundled: {known}")
    return Path(__file__).parent / name


def judge_of(source: str) -> str | None:
    """The bundled classifier for a bundled model, by the name of its source (`zoo://NAME`); None for any other."""
    return CLASSIFIERS.get(source.removeprefix("zoo://").partition("?")[0]) if source.startswith("zoo://") else None


def load_classifier(folder: Path | None = None) -> DigitClassifier:
    """The trained classifier in eval mode, float32, without gradients; the bundled one unless `folder` is given.

    Raises:
        ModelError: a file is missing, or its tensors are not those of the configuration.
    """
    folder = folder or classifier_folder()
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
        with torch.device("meta"):
            model = DigitClassifier(tuple(config["widths"]), config["classes"])
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, assign=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = "reinstall the package, or train it with `python -m compress.models.zoo.train_classifier`"
        raise ModelError(f"the classifier cannot be loaded: {error}", where=str(folder), hint=hint) from error
    return model.eval().requires_grad_(False)


def judge(classifier: DigitClassifier, images: Tensor, batch: int = 500) -> Judgement:
    """Features and logits of images `[n, 1, 16, 16]` in [-1, 1], computed `batch` at a time."""
    with torch.inference_mode():
        parts = [classifier.features(part) for part in torch.split(images.float(), batch)]
        features = torch.cat(parts) if parts else images.new_zeros(0, classifier.head.in_features)
        return Judgement(features, classifier.head(features))


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Mean and unbiased covariance, in float64, of features `[n, d]`. Raises InputError below two vectors."""
    if len(features) < 2:
        raise InputError(f"a covariance needs at least two feature vectors, got {len(features)}")
    features = features.double()
    centred = features - features.mean(dim=0)
    return FeatureStatistics(features.mean(dim=0), centred.T @ centred / (len(features) - 1), len(features))


def reference_statistics(split: Literal["test", "train"] = "test", folder: Path | None = None) -> FeatureStatistics:
    """Feature statistics of the real digits of one MNIST split; no images are shipped."""
    if split not in _SPLITS:
        raise InputError(f"no statistics of a split called `{split}`", hint=f"known: {', '.join(_SPLITS)}")
    tensors = _statistics_tensors(folder or classifier_folder())
    return FeatureStatistics(tensors[f"{split}.mean"], tensors[f"{split}.covariance"], int(tensors[f"{split}.n"]))


def reference_features(folder: Path | None = None) -> ReferenceFeatures:
    """Features and labels of 2,000 real test digits, for kernel distances and for floors."""
    tensors = _statistics_tensors(folder or classifier_folder())
    return ReferenceFeatures(tensors["test.features"].float(), tensors["test.labels"].long())


def _statistics_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / STATISTICS_FILE
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the feature statistics cannot be read: {error}", where=str(path)) from error
    return tensors
