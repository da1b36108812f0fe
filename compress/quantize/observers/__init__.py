"""Statistics of activations, kept per noise band."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.formats import Format
from compress.quantize.observers.base import NoiseBands, Observer, Range, StaticScale, static_scale
from compress.quantize.observers.ema import Ema, EmaMse, EmaMseObserver, EmaObserver
from compress.quantize.observers.minmax import MinMax, MinMaxObserver
from compress.quantize.observers.mse import Mse, MseObserver
from compress.quantize.observers.percentile import (
    BestPercentile,
    BestPercentileObserver,
    Percentile,
    PercentileObserver,
)

AnyObserver = MinMax | Percentile | BestPercentile | Mse | Ema | EmaMse
ObserverSettings = Annotated[AnyObserver, Field(discriminator="kind")]

__all__ = [
    "NoiseBands",
    "Observer",
    "ObserverSettings",
    "Range",
    "StaticScale",
    "make_observer",
    "order_matters",
    "static_scale",
]


def make_observer(
    settings: AnyObserver, bands: NoiseBands, fmt: Format | None = None, symmetric: bool = True
) -> Observer:
    """A fresh observer of the kind the settings name.

    `fmt` and `symmetric` are those that its `range` will be asked for; `ema_mse` needs them from the start.
    Raises ValueError when it is not told.
    """
    match settings:
        case MinMax():
            return MinMaxObserver(settings, bands)
        case Percentile():
            return PercentileObserver(settings, bands)
        case BestPercentile():
            return BestPercentileObserver(settings, bands)
        case Mse():
            return MseObserver(settings, bands)
        case Ema():
            return EmaObserver(settings, bands)
        case EmaMse():
            if fmt is None:
                raise ValueError("an observer of kind `ema_mse` needs the number format from the start")
            return EmaMseObserver(settings, bands, fmt, symmetric)


def order_matters(settings: AnyObserver) -> bool:
    """Whether the order of batches changes what is found, so that the inputs should be shuffled first."""
    return isinstance(settings, Ema | EmaMse)
