"""Published sizes: the public configurations are the published models, and the accounting adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import published_sizes
from benchmarks.published_sizes import CONFIGS, MODELS, Published, count, explanation, measure
from compress.models.source import open_adapter, resolve

PARAMETERS = {
    "sd-1.4": 859_520_964,
    "ldm-4-lsun-bedrooms": 274_056_163,
    "ldm-8-lsun-churches": 294_965_380,
    "ldm-4-imagenet": 400_920_579,
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.config)
def test_a_configuration_is_the_published_model(model: Published) -> None:
    counts = count(open_adapter(resolve(str(CONFIGS / model.config))))
    assert counts.parameters == PARAMETERS[model.config]
    if model.fp32 is not None:
        assert 4 * counts.parameters / 2**20 == pytest.approx(model.fp32, rel=3e-4)
    assert counts.weights + counts.unquantized == counts.parameters
    parts = explanation(model, counts, 8)
    assert parts["scales and zero points"] * 2**20 == 8 * counts.channels
    assert parts["biases and norms in fp32"] * 2**20 == 3 * counts.unquantized


@pytest.mark.parametrize("model", [model for model in MODELS if model.sizes], ids=lambda model: model.config)
def test_the_published_constant_does_not_depend_on_the_bits(model: Published) -> None:
    assert model.fp32 is not None
    assert model.sizes is not None
    constants = [size - model.fp32 * bits / 32 for bits, size in model.sizes.items()]
    assert max(constants) - min(constants) < 0.2


def test_our_bytes_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bedrooms = MODELS[1]
    rows, facts = measure(bedrooms)
    assert [row.bits for row in rows] == [8, 4]
    for row in rows:
        assert sum(row.ours_by_class.values()) == pytest.approx(row.ours, abs=1e-6)
        codes = row.ours_by_class["codes"]
        assert row.formula < row.ours < row.published
        assert codes * 2**20 * 8 / row.bits == pytest.approx(facts["parameters"], rel=1e-3)
        assert row.unexplained == pytest.approx(row.constant - sum(row.explained.values()))
    monkeypatch.setattr(published_sizes, "MODELS", (bedrooms,))
    assert published_sizes.main(["--output", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "published-sizes.json").read_text())
    assert data["rows"][0]["unexplained"] == pytest.approx(rows[0].unexplained)
    text = (tmp_path / "published-sizes.md").read_text()
    assert f"| {rows[0].unexplained:.1f} | {rows[0].ours:.1f} |" in text


def test_bit_operations_of_the_published_table() -> None:
    imagenet = MODELS[3]
    _, facts = measure(imagenet)
    assert facts["gmacs_of_2_20"] == pytest.approx(imagenet.gmacs, abs=0.05)
    assert facts["tbops_w8a8_of_2_20"] == pytest.approx(imagenet.tbops, abs=0.005)
