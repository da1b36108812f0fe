import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from compress.errors import RunError
from compress.formats import Format, get_format, quantize_dequantize
from compress.quantize.observers import (
    AnyObserver,
    NoiseBands,
    Observer,
    ObserverSettings,
    Range,
    make_observer,
    order_matters,
    static_scale,
)
from compress.quantize.observers.ema import Ema, EmaMse
from compress.quantize.observers.minmax import MinMax
from compress.quantize.observers.mse import Mse
from compress.quantize.observers.percentile import BestPercentile, Percentile

INT8, INT4 = get_format("int8"), get_format("int4")
KINDS: list[AnyObserver] = [MinMax(), Percentile(), BestPercentile(), Mse(), Mse(norm=2.4), Ema(), EmaMse()]


def activations(seed: int = 0, outlier: float = 40.0) -> torch.Tensor:
    x = torch.randn(8, 33, 16, generator=torch.Generator().manual_seed(seed))
    x[3, 5, 7] = outlier
    return x


def on_bin_centres(n: int, seed: int, low: float = -3.9, high: float = 3.9) -> Tensor:
    """Random values `[n]` that a histogram with limit 4 keeps exactly; the largest magnitude is above 2."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul_(0.8).clamp_(low, high)
    x[0] = high if high > 2 else low
    return ((x * 512).floor() + 0.5) / 512


def watch(settings: AnyObserver, x: Tensor, fmt: Format = INT8, symmetric: bool = True) -> Observer:
    observer = make_observer(settings, NoiseBands(), fmt, symmetric)
    observer.update(x, torch.ones(1))
    return observer


def mean_error(x: Tensor, kept: Range, fmt: Format, symmetric: bool, norm: float) -> float:
    """What a clipping range costs, from the values themselves."""
    stored = static_scale(kept, fmt, symmetric)
    codes = fmt if symmetric else get_format(f"u{fmt.name}")
    rounded = quantize_dequantize(x, codes, stored.scale, stored.zero_point)
    return float((x.double() - rounded.double()).abs().pow(norm).mean())


def brute_force(x: Tensor, fmt: Format, symmetric: bool, norm: float, factors: list[float]) -> Range:
    """The best of shrunken copies of the full range, first of equals."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    tried = [Range(low * factor, high * factor) for factor in factors]
    return min(tried, key=lambda kept: mean_error(x, kept, fmt, symmetric, norm))


def test_settings_are_told_apart_by_kind() -> None:
    parse = TypeAdapter[AnyObserver](ObserverSettings).validate_python
    for settings in KINDS:
        assert parse(settings.model_dump()) == settings
    assert parse({"kind": "best_percentile"}).candidates == (99.9, 99.99, 99.999)  # type: ignore[union-attr]
    assert {s.kind for s in KINDS if order_matters(s)} == {"ema", "ema_mse"}
    with pytest.raises(ValidationError):
        parse({"kind": "best_percentile", "candidates": [99.9, 40]})


def test_bands_split_rows_by_sigma() -> None:
    bands = NoiseBands((1.0, 10.0))
    x = torch.arange(6.0).reshape(6, 1)
    parts = dict(bands.split(x, torch.tensor([0.5, 5.0, 50.0])))  # two rows (tokens) per sample
    assert {band: part.flatten().tolist() for band, part in parts.items()} == {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    with pytest.raises(ValueError, match="cannot be shared out"):
        bands.split(x, torch.ones(4))


@pytest.mark.parametrize("settings", [s for s in KINDS if not order_matters(s)], ids=str)
def test_order_of_batches_does_not_matter(settings: AnyObserver) -> None:
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


def test_bands_of_levels_hold_one_level_each() -> None:
    levels = [0.0, 0.01, 0.3, 0.30001, 5.0, math.inf]
    bands = NoiseBands.of_levels([*levels, 0.3])
    x = torch.arange(6.0).reshape(6, 1)
    split = bands.split(x, torch.tensor(levels))
    assert [(band, part.tolist()) for band, part in split] == [(i, [[float(i)]]) for i in range(6)]
    assert bands.split(x[:1], torch.tensor([0.02]))[0][0] == 1  # nearer to 0.01 than to 0.3, by factors
    assert NoiseBands.of_levels([2.0]).split(x[:1], torch.tensor([9.0]))[0][0] == 0


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_each_band_has_the_range_of_its_own_values(settings: AnyObserver) -> None:
    x, sigma = activations(), torch.tensor([0.1, 0.1, 2.0, 2.0, 2.0, 80.0, 80.0, 80.0])
    for fmt, symmetric in ((INT8, True), (INT8, False)):
        observer = make_observer(settings, NoiseBands(), fmt, symmetric)
        observer.update(x, sigma)
        ranges = observer.ranges_by_band(fmt, symmetric)
        assert list(ranges) == sorted(ranges)
        for level, band in zip((0.1, 2.0, 80.0), ranges, strict=True):
            alone = make_observer(settings, NoiseBands(), fmt, symmetric)
            alone.update(x[sigma == level], sigma[sigma == level])
            assert ranges[band] == observer.range(fmt, symmetric, band) == alone.range(fmt, symmetric)
        undivided = make_observer(settings, NoiseBands((1e9,)), fmt, symmetric)
        undivided.update(x, sigma)
        assert observer.range(fmt, symmetric) == undivided.range(fmt, symmetric)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_what_was_never_seen_has_no_range(settings: AnyObserver) -> None:
    observer = make_observer(settings, NoiseBands(), INT8)
    with pytest.raises(RunError, match="no activation was seen"):
        observer.range(INT8, True)
    observer.update(activations(), torch.ones(8))
    with pytest.raises(RunError, match="in noise band 7"):
        observer.range(INT8, True, 7)
    for broken in (math.nan, math.inf):
        with pytest.raises(RunError, match="not finite"):
            observer.update(torch.tensor([[1.0, broken]]), torch.ones(1))


ODD_DATA = {
    "zeros": torch.zeros(4, 8),
    "equal": torch.full((4, 8), 0.37),
    "equal negative": torch.full((4, 8), -2.5),
    "positive": torch.rand(4, 500, generator=torch.Generator().manual_seed(0)) + 1,
    "negative": -torch.rand(4, 500, generator=torch.Generator().manual_seed(1)) - 1,
    "two-sided": torch.randn(4, 500, generator=torch.Generator().manual_seed(2)),
    "tiny": torch.randn(4, 500, generator=torch.Generator().manual_seed(3)) * 1e-12,
}


@pytest.mark.parametrize("data", ODD_DATA)
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_every_range_holds_zero_and_gives_a_scale(settings: AnyObserver, data: str) -> None:
    x = ODD_DATA[data]
    for fmt, symmetric in ((INT8, True), (INT8, False), (INT4, False)):
        found = watch(settings, x, fmt, symmetric).range(fmt, symmetric)
        assert found.low <= 0 <= found.high
        if symmetric and isinstance(settings, EmaMse):
            assert found.low == -found.high  # thresholds of the magnitude
        else:
            assert found.low >= min(0.0, float(x.min()))
            assert found.high <= max(0.0, float(x.max()))
        stored = static_scale(found, fmt, symmetric)
        assert float(stored.scale) > 0
        assert (stored.zero_point is None) == symmetric
        if stored.zero_point is not None:
            assert float(stored.zero_point) in range(2**fmt.bits)
        zero = quantize_dequantize(torch.zeros(1), fmt if symmetric else get_format(f"u{fmt.name}"), *stored)
        assert float(zero) == 0.0


@pytest.mark.parametrize("settings", [s for s in KINDS if s.kind != "ema_mse"], ids=str)
def test_equal_values_are_kept(settings: AnyObserver) -> None:
    for value in (0.37, -2.5):
        x = torch.full((4, 8), value)
        for symmetric in (True, False):
            found = watch(settings, x, INT8, symmetric).range(INT8, symmetric)
            assert mean_error(x, found, INT8, symmetric, 1.0) < 0.002 * abs(value)


@pytest.mark.parametrize("norm", [2.0, 2.4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda f: f.name)
@pytest.mark.parametrize("ends", [(-3.9, 3.9), (-0.3, 3.9), (0.0, 3.9), (-3.9, 0.0)])
def test_mse_is_the_best_of_all_shrunken_ranges(
    fmt: Format, symmetric: bool, norm: float, ends: tuple[float, float]
) -> None:
    x = on_bin_centres(301, 5, *ends)
    settings = Mse(norm=norm, steps=40, smallest=0.3)
    found = watch(settings, x.reshape(1, -1), fmt, symmetric).range(fmt, symmetric)
    factors = torch.linspace(1, 0.3, 40, dtype=torch.float64).tolist()
    assert found == pytest.approx(brute_force(x, fmt, symmetric, norm, factors), rel=1e-6)
    full = Range(min(0.0, float(x.min())), max(0.0, float(x.max())))
    assert mean_error(x, found, fmt, symmetric, norm) <= mean_error(x, full, fmt, symmetric, norm)


@pytest.mark.parametrize("symmetric", [True, False])
def test_norm_moves_the_range(symmetric: bool) -> None:
    """A higher power minds clipping more, so it keeps more."""
    x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(8))
    kept = [watch(Mse(norm=norm), x, INT4, symmetric).range(INT4, symmetric).high for norm in (1.0, 2.0, 2.4, 6.0)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_best_percentile_is_the_best_of_its_candidates() -> None:
    candidates = (90.0, 99.0, 99.9, 100.0)
    for seed, fmt in ((1, INT8), (2, INT4), (3, INT4)):
        x = on_bin_centres(2001, seed)
        ordered = x.sort().values.tolist()
        tried = []
        for percent in candidates:
            # The smallest value below or at which that share of the values lies.
            last, first = math.ceil(20.01 * percent), math.ceil(20.01 * (100 - percent))
            tried.append(Range(ordered[max(0, first - 1)], ordered[min(last, 2001) - 1]))
        for symmetric in (True, False):
            best = min(tried, key=lambda kept: mean_error(x, kept, fmt, symmetric, 2.0))
            found = watch(BestPercentile(candidates=candidates), x.reshape(1, -1), fmt, symmetric)
            assert found.range(fmt, symmetric) == best
    # At few bits it clips, at many it does not.
    x = activations(outlier=7.0).reshape(1, -1)
    four, eight = (watch(BestPercentile(), x, fmt).range(fmt, True).high for fmt in (INT4, INT8))
    assert four < eight


def test_ema_follows_its_recursion() -> None:
    batches = [activations(seed, outlier=float(seed)) for seed in range(5)]
    observer = make_observer(Ema(decay=0.9), NoiseBands())
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches:
        observer.update(batch, torch.tensor([0.1, 0.1, 0.1, 0.1, 9.0, 9.0, 9.0, 9.0]))
        low, high = 0.9 * low + 0.1 * float(batch.min()), 0.9 * high + 0.1 * float(batch.max())
    assert observer.range(INT8, True) == pytest.approx((low, high))
    band_high = float(batches[0][:4].max())
    for batch in batches:
        band_high = 0.9 * band_high + 0.1 * float(batch[:4].max())
    assert observer.ranges_by_band(INT8, True)[1].high == pytest.approx(band_high)


def test_ema_forgets_what_came_first() -> None:
    """Inputs in the order of sampling leave the range of the last timesteps: they must be shuffled."""
    batches = [torch.full((1, 4), 1.0 + step) for step in range(100)]
    forwards, backwards = make_observer(Ema(), NoiseBands()), make_observer(Ema(), NoiseBands())
    for batch, mirrored in zip(batches, reversed(batches), strict=True):
        forwards.update(batch, torch.ones(1))
        backwards.update(mirrored, torch.ones(1))
    assert forwards.range(INT8, True).high > 80
    assert backwards.range(INT8, True).high < 21


@pytest.mark.parametrize("symmetric", [True, False])
def test_ema_mse_averages_the_best_range_of_every_batch(symmetric: bool) -> None:
    factors = [i / 100 for i in range(100, 0, -1)]
    observer = make_observer(EmaMse(), NoiseBands(), INT4, symmetric)
    expected: Range | None = None
    for seed in range(4):
        x = on_bin_centres(200, seed, -2.5, 3.9)
        observer.update(x.reshape(2, -1), torch.tensor([0.1, 9.0]))
        searched = brute_force(x, INT4, symmetric, 2.4, factors)
        if symmetric:
            threshold = max(-searched.low, searched.high)
            searched = Range(-threshold, threshold)
        old = expected or searched
        expected = Range(0.9 * old.low + 0.1 * searched.low, 0.9 * old.high + 0.1 * searched.high)
    assert expected is not None
    assert observer.range(INT4, symmetric) == pytest.approx(expected, rel=1e-6)


def test_ema_mse_at_eight_bits_is_no_worse_than_the_full_range() -> None:
    x = on_bin_centres(4000, 6)
    for symmetric in (True, False):
        found = watch(EmaMse(), x.reshape(1, -1), INT8, symmetric).range(INT8, symmetric)
        full = Range(float(x.min()), float(x.max()))
        assert mean_error(x, found, INT8, symmetric, 2.4) <= mean_error(x, full, INT8, symmetric, 2.4)


def test_ema_mse_must_know_the_format() -> None:
    with pytest.raises(ValueError, match="needs the number format"):
        make_observer(EmaMse(), NoiseBands())
    with pytest.raises(ValueError, match="searched for int8"):
        watch(EmaMse(), activations()).range(INT4, True)
