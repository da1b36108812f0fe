import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.accuracy import class_accuracy, class_accuracy_by_class, class_accuracy_drop, wilson_interval


def one_hot(named: list[int], classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(named), classes).float()


def test_wilson_interval_of_published_examples() -> None:
    # Newcombe 1998, Table I, method 3: 81/263 and 15/148 and 0/20.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = wilson_interval(successes, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_interval_stays_inside_and_is_symmetric() -> None:
    full, empty = wilson_interval(31, 31), wilson_interval(0, 31)
    assert full.high == 1.0 and empty.low == 0.0
    assert full.low == pytest.approx(1 - empty.high)


def test_accuracy_is_the_fraction_named_correctly() -> None:
    metric = class_accuracy(one_hot([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 0, 0]), artefact="reference", seed=5)
    assert (metric.name, metric.value, metric.n, metric.seed, metric.labels) == ("class_accuracy", 0.8, 5, 5, {})
    assert 0 <= metric.spread["ci95_low"] < 0.8 < metric.spread["ci95_high"] <= 1


def test_accuracy_by_class_covers_the_classes_asked_for() -> None:
    metrics = class_accuracy_by_class(one_hot([0, 1, 3, 3]), torch.tensor([0, 0, 3, 3]), artefact="onnx")
    assert [(m.labels, m.value, m.n) for m in metrics] == [({"category": "0"}, 0.5, 2), ({"category": "3"}, 1.0, 2)]


def test_drop_is_reference_minus_compressed_and_paired() -> None:
    labels = torch.zeros(400, dtype=torch.long)
    before = one_hot([0] * 200 + [1] * 200)
    metric = class_accuracy_drop(before, one_hot([0] * 190 + [1] * 210), labels, artefact="checkpoint")
    assert metric.value == pytest.approx(10 / 400)
    assert 0 < metric.spread["ci95_low"] < metric.spread["ci95_high"] < 0.05  # unpaired it would span about 0.14
    same = class_accuracy_drop(before, before, labels, artefact="checkpoint")
    assert (same.value, same.spread) == (0, {"ci95_low": 0, "ci95_high": 0})


def test_impossible_input_is_refused() -> None:
    with pytest.raises(InputError, match="belong together"):
        class_accuracy(one_hot([0, 1]), torch.tensor([0]), artefact="onnx")
    with pytest.raises(InputError, match="no fraction"):
        class_accuracy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), artefact="onnx")
    with pytest.raises(RunError, match="1 of 2 logits"):
        class_accuracy(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), torch.tensor([1, 1]), artefact="onnx")
