"""PTQ4DM: symmetric range search, and what it says about recipes that calibrate otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learned import STATIC, job_for, logged, one_layer, tiny_adapter

from compress.calibration.policies import NormalTimesteps, UniformTimesteps
from compress.errors import FormatError, RecipeError
from compress.formats import WeightSpec, quantize_weight, weight_scales
from compress.quantize.methods import ptq4dm
from compress.quantize.methods.ptq4dm import Ptq4dm, quantize_layer, symmetric_ranges
from compress.quantize.observers import EmaMse
from compress.quantize.settings import ActivationSettings, WeightSettings
from compress.quantize.spec import LayerSpec

SEARCH = Ptq4dm().ranges
SPECS = [
    WeightSpec("int8"),
    WeightSpec("int8", symmetric=False),
    WeightSpec("int4", symmetric=False),
    WeightSpec("int4", "group", 8, True, "float16"),
    WeightSpec("int3", "tensor", None, False),
]


def weights(rows: int = 6, k: int = 33, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed weights, one outlier in every row."""
    drawn = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))
    drawn[:, 3] *= 6
    return drawn


def row_errors(weight: torch.Tensor, spec: WeightSpec, scales) -> torch.Tensor:
    """L2.4 rounding error of every row, or of the whole where one scale serves all."""
    found = quantize_weight(weight, spec, scales.scales, scales.zero_points).dequantize()
    errors = (weight - found).double().abs().pow(2.4).sum(1)
    return errors.sum() if spec.granularity == "tensor" else errors


def test_the_search_is_the_papers() -> None:
    assert SEARCH.norm == 2.4
    assert sorted(SEARCH.factors()) == pytest.approx([i / 100 for i in range(1, 101)])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.format}-{spec.granularity}-{spec.symmetric}")
def test_searched_ranges_cost_no_more_than_the_largest_magnitude(spec: WeightSpec) -> None:
    """The paper's own claim about its search (specification, section 2f)."""
    weight = weights()
    largest = weight_scales(weight, replace(spec, symmetric=True))
    if not spec.symmetric:
        middle = torch.full(largest.scales.shape, 1 << spec.number_format.bits - 1, dtype=torch.uint8)
        largest = largest._replace(zero_points=middle)
    searched = row_errors(weight, spec, symmetric_ranges(weight, spec, SEARCH))
    before = row_errors(weight, spec, largest)
    assert bool((searched <= before * (1 + 1e-6)).all())
    if spec.format != "int8":
        assert float(searched.sum()) < 0.98 * float(before.sum())  # few bits: clipping the outliers pays


def test_two_sided_ranges_have_their_zero_in_the_middle() -> None:
    spec = WeightSpec("int4", symmetric=False)
    weight = weights()
    weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
    found = symmetric_ranges(weight, spec, SEARCH)
    assert found.zero_points.flatten().tolist() == [0, 15, 8, 8, 8, 8]


def test_one_sided_ranges_use_all_codes_for_their_side() -> None:
    """[0, c] has twice the resolution of [-c, c]."""
    spec, weight = WeightSpec("int4", symmetric=False), torch.linspace(0, 1, 64).reshape(1, 64)
    one_sided = row_errors(weight, spec, symmetric_ranges(weight, spec, SEARCH))
    signed = WeightSpec("int4")
    two_sided = row_errors(weight, signed, symmetric_ranges(weight, signed, SEARCH))
    assert float(one_sided) < 0.3 * float(two_sided)


def test_thresholds_are_hundredths_of_the_largest_magnitude() -> None:
    weight, spec = weights(), WeightSpec("int8")
    share = symmetric_ranges(weight, spec, SEARCH).scales / weight_scales(weight, spec).scales * 100
    assert torch.allclose(share, share.round(), atol=1e-3)
    assert bool((share.round() >= 1).all())


def test_halves_of_a_split_layer_have_ranges_of_their_own() -> None:
    """Ranges 1 and 200: one scale for both leaves the small half nothing (Q-Diffusion section 4.2)."""
    weight = weights(8, 40)
    weight[:, 16:] *= 200
    spec = LayerSpec(WeightSpec("int4"))
    whole = quantize_layer("skip", weight, spec, SEARCH).parts
    halves = quantize_layer("skip", weight, replace(spec, split=16), SEARCH).parts
    assert len(whole) == 1
    assert [part.weight.shape for part in halves] == [(8, 16), (8, 24)]
    unsplit = (whole[0].weight.dequantize() - weight)[:, :16].square().mean()
    split = (halves[0].weight.dequantize() - weight[:, :16]).square().mean()
    assert float(split) < 0.05 * float(unsplit)


def test_formats_without_an_even_grid_are_refused() -> None:
    layers = one_layer(WeightSettings(format="nf4"), ActivationSettings())
    with pytest.raises(RecipeError, match=r"`ptq4dm` works on integer grids, .* has nf4"):
        ptq4dm.prepare(Ptq4dm(), layers, None)
    static = ActivationSettings(format="fp8_e4m3", granularity="tensor", mode="static")
    with pytest.raises(RecipeError, match=r"has fp8_e4m3"):
        ptq4dm.prepare(Ptq4dm(), one_layer(WeightSettings(format="int8"), static), None)


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = weights()
    broken[0, 0] = float("nan")
    with pytest.raises(FormatError, match="not finite"):
        symmetric_ranges(broken, WeightSpec("int8"), SEARCH)


def test_it_says_when_timesteps_and_observer_are_not_the_papers(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    papers = STATIC.model_copy(update={"observer": EmaMse()})
    cases = [
        (UniformTimesteps(count=4), STATIC, ["`uniform` timesteps", "observer `minmax`"]),
        (NormalTimesteps(count=4), papers, []),
    ]
    for policy, activations, words in cases:
        trajectory = logged(adapter, tmp_path / policy.kind, samples=2, timesteps=policy)
        job = job_for(adapter, trajectory, tmp_path / "work", activations=activations)
        finished = list(ptq4dm.run(Ptq4dm(), job))
        assert [layer.name for layer in finished] == [a.info.name for a in job.assignments]
        notes = job.calibration.progress.lines
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes, strict=True))


def test_without_static_inputs_there_is_nothing_to_say(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "model", "dit")
    job = job_for(
        adapter, logged(adapter, tmp_path / "log", samples=2), tmp_path / "work", activations=ActivationSettings()
    )
    assert len(list(ptq4dm.run(Ptq4dm(), job))) == len(job.assignments)
    assert job.calibration.progress.lines == []
