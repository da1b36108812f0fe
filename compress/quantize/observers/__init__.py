"""Statistics of activations, kept per noise band."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.quantize.observers.base import NoiseBands, Observer, Range, StaticScale, static_scale
from compress.quantize.observers.minmax import MinMax, MinMaxObserver
from compress.quantize.observers.mse import Mse, MseObserver
from compress.quantize.observers.percentile import Percentile, PercentileObserver

ObserverSettings = Annotated[MinMax | Percentile | Mse, Field(discriminator="kind")]

__all__ = ["NoiseBands", "Observer", "ObserverSettings", "Range", "StaticScale", "make_observer", "static_scale"]


def make_observer(settings: MinMax | Percentile | Mse, bands: NoiseBands) -> Observer:
    """A fresh observer of the kind the settings name."""
    if isinstance(settings, MinMax):
        return MinMaxObserver(settings, bands)
    if isinstance(settings, Percentile):
        return PercentileObserver(settings, bands)
    return MseObserver(settings, bands)
