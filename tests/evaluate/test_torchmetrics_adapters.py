"""The adapter on small TorchScript modules written here; no weights are fetched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate import optional
from compress.evaluate.frechet import distance
from compress.evaluate.torchmetrics_adapters import inception_distance
from compress.models.zoo.classifier import feature_statistics


class Corners(torch.nn.Module):
    """Five features of uint8 images; without `return_features` something else, like the usual Inception file."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.flatten(1).float()
        if return_features:
            return pixels[:, :5].reshape(-1, 5, 1, 1)
        return pixels[:, 5:7]


class Plain(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5].float()


def images(n: int, seed: int, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def script(module: torch.nn.Module, path: Path) -> Path:
    save: Any = torch.jit.save
    make: Any = torch.jit.script
    save(make(module), path)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("module", "channels"), [(Corners(), 3), (Plain(), 3), (Corners(), 1)])
def test_inception_distance_is_the_distance_of_the_files_features(
    tmp_path: Path, module: torch.nn.Module, channels: int
) -> None:
    pytest.importorskip("torchmetrics")
    generated, real = images(33, 0, channels), images(65, 1, channels)
    metric = inception_distance(generated, real, script(module, tmp_path / "net.pt"), artefact="checkpoint")
    levels = [((batch + 1) * 127.5).round().expand(-1, 3, -1, -1).flatten(1)[:, :5] for batch in (generated, real)]
    expected = distance(*(feature_statistics(features) for features in levels))
    assert metric.value == pytest.approx(expected, rel=1e-4)
    assert (metric.name, metric.n, metric.labels) == ("frechet_distance", 33, {"features": "net.pt"})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_weights_that_are_absent_or_something_else_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(InputError, match="nothing is downloaded"):
        inception_distance(images(2, 0), images(2, 1), tmp_path / "none.pt", artefact="onnx")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match="no TorchScript"):
        inception_distance(images(2, 0), images(2, 1), tmp_path / "text.pt", artefact="onnx")


def test_torchmetrics_is_asked_for_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs torchmetrics .*compress\[metrics\]"):
        inception_distance(images(2, 0), images(2, 1), tmp_path / "none.pt", artefact="onnx")
