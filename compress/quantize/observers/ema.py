"""Moving averages of the range, from batch to batch.

The order of batches matters, as it does in no other observer: with a decay of 0.95 half the weight lies on the last 14
batches. A trajectory is logged from noise to image within each chunk of samples, so batches in that order end in a
range of the last few timesteps (what Q-Diffusion's LDM script does). Whoever feeds these observers shuffles the inputs
first, as `order_matters` asks; what an observer is given, it averages as given. A batch is one call of `update`: a
layer that runs twice in a forward makes two.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

from pydantic import Field
from torch import Tensor

from compress.config import Config
from compress.formats import Format
from compress.quantize.observers.base import BandObserver, NoiseBands, Range, extremes
from compress.quantize.observers.error import least_error, shrunken
from compress.quantize.observers.histogram import Histogram
from compress.quantize.observers.minmax import union


class Ema(Config):
    """Exponential moving average of each batch's smallest and largest value (Q-Diffusion's "running stat").

    End <- decay * end + (1 - decay) * the batch's; the first batch starts it.
    """

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.95, ge=0, lt=1, description="Weight of the range so far when the next batch comes.")


class EmaMse(Config):
    """Exponential moving average of each batch's range of least error (Shang et al. 2023, PTQ4DM).

    The ranges tried are i / 100 of the batch's largest magnitude, the error is |x - x^|**2.4. With `symmetric: false`
    both ends of the batch's range, widened to hold 0, shrink together instead: the released code keeps ranges symmetric
    there, which leaves codes without use, but for batches of one sign. Its searches run over values, ours over a
    histogram of 4096 bins.
    """

    kind: Literal["ema_mse"] = "ema_mse"
    decay: float = Field(0.9, ge=0, lt=1, description="Weight of the range so far when the next batch comes.")
    steps: int = Field(100, ge=2, description="Ranges tried, from the full one downwards.")
    smallest: float = Field(0.01, gt=0, lt=1, description="Smallest range tried, as a fraction of the full one.")
    norm: float = Field(2.4, gt=0, le=10, description="Power of the error whose mean is least.")


class MovingRange(BandObserver[Range]):
    """Moving ranges: one of whole batches, and one of the part of each batch that lies in a band of noise levels."""

    def __init__(self, decay: float, bands: NoiseBands) -> None:
        super().__init__(bands)
        self.decay = decay
        self.whole: Range | None = None

    def take(self, whole: Range, parts: dict[int, Range]) -> None:
        """Average in the ranges of a batch and of its parts by band."""
        self.whole = self._average(self.whole, whole)
        for band, part in parts.items():
            self.by_band[band] = self._average(self.by_band.get(band), part)

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        ranges = self.statistics(band)  # says so when nothing was seen
        return (ranges[0] if band is not None or self.whole is None else self.whole).with_zero()

    def _average(self, old: Range | None, new: Range) -> Range:
        if old is None:
            return new
        return Range(*(self.decay * before + (1 - self.decay) * now for before, now in zip(old, new, strict=True)))


class EmaObserver(MovingRange):
    """Moving average of the full range."""

    def __init__(self, settings: Ema, bands: NoiseBands) -> None:
        super().__init__(settings.decay, bands)

    def update(self, x: Tensor, sigma: Tensor) -> None:
        parts = {band: extremes(part) for band, part in self.bands.split(x, sigma)}
        self.take(union(list(parts.values())), parts)


class EmaMseObserver(MovingRange):
    """Moving average of the range of least error; it searches as batches come, so it must know the number format."""

    def __init__(self, settings: EmaMse, bands: NoiseBands, fmt: Format, symmetric: bool) -> None:
        super().__init__(settings.decay, bands)
        self.settings, self.fmt, self.symmetric = settings, fmt, symmetric

    def update(self, x: Tensor, sigma: Tensor) -> None:
        histograms: dict[int, Histogram] = {}
        for band, part in self.bands.split(x, sigma):
            histograms[band] = Histogram()
            histograms[band].update(part)
        whole = self._search(reduce(Histogram.merge, histograms.values()))
        alone = len(histograms) == 1
        self.take(whole, {band: whole if alone else self._search(part) for band, part in histograms.items()})

    def range(self, fmt: Format, symmetric: bool, band: int | None = None) -> Range:
        if (fmt, symmetric) != (self.fmt, self.symmetric):
            raise ValueError(f"ranges were searched for {self.fmt.name}, symmetric={self.symmetric}")
        return super().range(fmt, symmetric, band)

    def _search(self, histogram: Histogram) -> Range:
        full = Range(histogram.low, histogram.high).with_zero()
        if self.symmetric:
            limit = max(-full.low, full.high)
            full = Range(-limit, limit)
        tried = shrunken(full, self.settings.smallest, self.settings.steps)
        return least_error(histogram, tried, self.fmt, self.symmetric, self.settings.norm)
