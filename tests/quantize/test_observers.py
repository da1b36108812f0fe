import pytest
import torch

from compress.formats import get_format, quantize_dequantize
from compress.quantize.observers import NoiseBands, Range, make_observer, static_scale
from compress.quantize.observers.minmax import MinMax
from compress.quantize.observers.mse import Mse
from compress.quantize.observers.percentile import Percentile

INT8 = get_format("int8")


def activations(seed: int = 0, outlier: float = 40.0) -> torch.Tensor:
    x = torch.randn(8, 33, 16, generator=torch.Generator().manual_seed(seed))
    x[3, 5, 7] = outlier
    return x


def test_bands_split_rows_by_sigma() -> None:
    bands = NoiseBands((1.0, 10.0))
    x = torch.arange(6.0).reshape(6, 1)
    parts = dict(bands.split(x, torch.tensor([0.5, 5.0, 50.0])))  # two rows (tokens) per sample
    assert {band: part.flatten().tolist() for band, part in parts.items()} == {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    with pytest.raises(ValueError, match="cannot be shared out"):
        bands.split(x, torch.ones(4))


@pytest.mark.parametrize("settings", [MinMax(), Percentile(), Mse()], ids=lambda s: s.kind)
def test_order_of_batches_does_not_matter(settings: MinMax | Percentile | Mse) -> None:
    x, sigma = activations(), torch.tensor([0.1, 0.2, 0.4, 1.0, 2.0, 4.0, 8.0, 80.0])
    whole, parts = make_observer(settings, NoiseBands()), make_observer(settings, NoiseBands())
    whole.update(x, sigma)
    for start in (4, 0, 6, 2):
        parts.update(x[start : start + 2], sigma[start : start + 2])
    assert whole.range(INT8, True) == parts.range(INT8, True)


def test_minmax_is_the_full_range() -> None:
    observer = make_observer(MinMax(), NoiseBands())
    x = activations()
    observer.update(x, torch.ones(8))
    assert observer.range(INT8, True) == Range(float(x.min()), 40.0)


def test_percentile_leaves_the_outlier_out_and_100_keeps_it() -> None:
    x = activations()
    for percentile, expected in ((99.9, 5.0), (100.0, 40.0)):
        observer = make_observer(Percentile(percentile=percentile), NoiseBands())
        observer.update(x, torch.ones(8))
        high = observer.range(INT8, True).high
        assert high == 40.0 if expected == 40.0 else high < expected


@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp4_e2m1"])
def test_mse_is_never_worse_than_minmax(name: str) -> None:
    fmt, x = get_format(name), activations(outlier=12.0)
    errors = {}
    for settings in (MinMax(), Mse()):
        observer = make_observer(settings, NoiseBands())
        observer.update(x, torch.ones(8))
        scale = static_scale(observer.range(fmt, True), fmt, True)
        errors[settings.kind] = float((quantize_dequantize(x, fmt, scale.scale) - x).square().mean())
    assert errors["mse"] <= errors["minmax"] * 1.01
    if name == "int4":
        assert errors["mse"] < 0.7 * errors["minmax"]


def test_asymmetric_scale_holds_zero_and_the_range() -> None:
    found = static_scale(Range(-0.2, 3.0), INT8, symmetric=False)
    assert found.zero_point is not None
    x = torch.linspace(-0.2, 3.0, 401)
    rounded = quantize_dequantize(x, get_format("uint8"), found.scale, found.zero_point)
    assert float((rounded - x).abs().max()) <= float(found.scale) * 0.51
    zero = quantize_dequantize(torch.zeros(1), get_format("uint8"), found.scale, found.zero_point)
    assert float(zero) == 0.0


def test_constant_input_has_a_usable_scale() -> None:
    for symmetric in (True, False):
        assert float(static_scale(Range(0.0, 0.0), INT8, symmetric).scale) > 0
