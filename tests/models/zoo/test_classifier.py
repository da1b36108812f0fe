import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import InputError, ModelError
from compress.evaluate.frechet import distance, frechet_floor
from compress.models.zoo.classifier import (
    CLASSIFIERS,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    DigitClassifier,
    classifier_folder,
    feature_statistics,
    judge,
    load_classifier,
    reference_features,
    reference_statistics,
)


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return load_classifier()


def noise(n: int) -> torch.Tensor:
    return (torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5).clamp(-1, 1)


def test_bundle_is_small_and_named_for_its_models() -> None:
    assert CLASSIFIERS["digits-dit"] == "digits-classifier"
    folder = classifier_folder(CLASSIFIERS["digits-dit"])
    assert (folder / WEIGHTS_FILE).stat().st_size < 600_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert "| test accuracy | 0.99" in (folder / "README.md").read_text()


def test_stored_test_features_are_classified_as_the_card_says(classifier: DigitClassifier) -> None:
    features, labels = reference_features()
    assert features.shape == (2000, 96) and labels.shape == (2000,)
    accuracy = float((classifier.head(features).argmax(dim=1) == labels).float().mean())
    assert accuracy >= 0.985
    assert set(labels.tolist()) == set(range(10))


def test_forward_is_head_of_features_in_eval_mode_without_gradients(classifier: DigitClassifier) -> None:
    x = noise(31)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    features = classifier.features(x)
    assert features.shape == (31, 96) and float(features.min()) >= 0
    torch.testing.assert_close(classifier(x), classifier.head(features))


def test_judging_in_batches_changes_nothing(classifier: DigitClassifier) -> None:
    x = noise(33)
    whole, parts = judge(classifier, x), judge(classifier, x.double(), batch=7)
    torch.testing.assert_close(whole.features, parts.features)
    torch.testing.assert_close(whole.logits, classifier(x))
    assert judge(classifier, x[:0]).logits.shape == (0, 10)


def test_statistics_are_of_all_images_and_fit_the_stored_features() -> None:
    test, train = reference_statistics("test"), reference_statistics("train")
    assert (test.n, train.n) == (10_000, 60_000)
    assert test.covariance.dtype == torch.float64
    torch.testing.assert_close(test.covariance, test.covariance.T)
    assert float(torch.linalg.eigvalsh(test.covariance).min()) >= -1e-12
    sample = feature_statistics(reference_features().features)
    assert distance(sample, test) < 0.2 and distance(train, test) < 0.05


def test_noise_is_far_from_digits_and_real_digits_are_near(classifier: DigitClassifier) -> None:
    statistics = reference_statistics("test")
    far = distance(feature_statistics(judge(classifier, noise(200)).features), statistics)
    assert far > 20 * frechet_floor(reference_features().features, statistics, 200, draws=3)


def test_unknown_names_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bundled: digits-classifier"):
        classifier_folder("cats-classifier")
    with pytest.raises(InputError, match="known: test, train"):
        reference_statistics("validation")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="train_classifier"):
        load_classifier(tmp_path)
    with pytest.raises(ModelError, match=STATISTICS_FILE):
        reference_statistics(folder=tmp_path)


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(classifier_folder(), folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    del tensors["head.bias"]
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"head\.bias"):
        load_classifier(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(ModelError):
        load_classifier(folder)
