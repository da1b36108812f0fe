import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.kid import kid, squared_mmd


def features(n: int, seed: int = 0, shift: float = 0.0, dims: int = 7) -> torch.Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)) + shift


def test_estimate_equals_the_definition() -> None:
    x, y = features(5), features(4, seed=1, shift=0.5)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a.double() @ b.double()) / 7 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_y = sum(kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel(a, b) for a in x for b in y) / 20
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-9)


def test_estimate_is_unbiased() -> None:
    values = torch.tensor([squared_mmd(features(20, 2 * s), features(20, 2 * s + 1)) for s in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20
    assert (values < 0).any()


def test_shift_is_found_and_grows() -> None:
    real = features(400, seed=1)
    values = [kid(features(401, shift=s), real, artefact="checkpoint", subset_size=100).value for s in (0, 0.5, 1.5)]
    assert abs(values[0]) < 0.05 < values[1] < values[2]


def test_metric_tells_how_it_was_drawn() -> None:
    metric = kid(features(33), features(31, seed=1), artefact="onnx", seed=7, subsets=3)
    assert (metric.name, metric.n, metric.seed, metric.spread["subset_size"]) == ("kid", 33, 7, 15)
    assert metric == kid(features(33), features(31, seed=1), artefact="onnx", seed=7, subsets=3)
    assert metric.value != kid(features(33), features(31, seed=1), artefact="onnx", seed=8, subsets=3).value
    assert kid(features(33), features(31, seed=1), artefact="onnx", subsets=1).spread["std"] == 0


def test_agrees_with_torchmetrics_on_one_full_subset() -> None:
    module = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(12), features(12, seed=1, shift=0.4)
    theirs = module.poly_mmd(y.double(), x.double(), degree=3, gamma=None, coef=1.0)
    assert squared_mmd(x, y) == pytest.approx(float(theirs), rel=1e-9)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="dimensions"):
        squared_mmd(features(3), features(3, dims=6))
    with pytest.raises(InputError, match="at least two"):
        squared_mmd(features(1), features(3))
    with pytest.raises(RunError, match="kernel distance"):
        squared_mmd(features(3) * float("nan"), features(3))
