import pytest
import torch

from compress.quantize.observers import histogram
from compress.quantize.observers.histogram import BINS, Histogram


def data(n: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


def test_counts_survive_growth_of_the_range() -> None:
    histogram = Histogram()
    for scale in (0.01, 1.0, 100.0):
        histogram.update(data(401, scale))
    assert float(histogram.counts.sum()) == 3 * 401
    assert histogram.limit >= max(abs(histogram.low), abs(histogram.high))
    assert histogram.limit == 2 ** round(torch.tensor(histogram.limit).log2().item())


def test_growing_late_equals_starting_wide() -> None:
    """Merging pairs of bins must give the histogram that wide bins would have given at once."""
    small, large = data(1000, 0.1), torch.tensor([77.0])
    late = Histogram()
    late.update(small)
    late.update(large)
    wide = Histogram()
    wide.update(large)
    wide.update(small)
    assert late.limit == wide.limit
    assert torch.equal(late.counts, wide.counts)


def test_merge_adds_data_sets() -> None:
    a, b = Histogram(), Histogram()
    a.update(data(500, 1.0, 1))
    b.update(data(300, 30.0, 2))
    both = a.merge(b)
    direct = Histogram()
    direct.update(data(300, 30.0, 2))
    direct.update(data(500, 1.0, 1))
    assert torch.equal(both.counts, direct.counts)
    assert (both.low, both.high) == (direct.low, direct.high)
    assert float(a.counts.sum()) == 500


def test_quantiles_are_within_a_bin() -> None:
    values = data(20_000, 2.0)
    histogram = Histogram()
    histogram.update(values)
    width = 2 * histogram.limit / BINS
    for fraction in (0.001, 0.5, 0.99, 0.9999):
        exact = float(torch.quantile(values, fraction))
        assert abs(histogram.quantile(fraction) - exact) < 2 * width + 0.05
    assert histogram.quantile(1.0) <= histogram.high


def test_large_inputs_are_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    whole, parts = Histogram(), Histogram()
    whole.update(values)
    monkeypatch.setattr(histogram, "CHUNK", 7)
    parts.update(values)
    assert torch.equal(whole.counts, parts.counts)
    assert (whole.low, whole.high, whole.limit) == (parts.low, parts.high, parts.limit)
