"""Layer and block reconstruction: learn rounding, then input scales, one unit at a time, within a memory budget."""

from compress.quantize.reconstruct.decide import decide_rounding, decide_steps
from compress.quantize.reconstruct.engine import Reconstruction
from compress.quantize.reconstruct.finished import Finished
from compress.quantize.reconstruct.learn import fit_rounding, fit_steps, settled_share
from compress.quantize.reconstruct.losses import Mode, mean_loss, reconstruction_loss
from compress.quantize.reconstruct.report import UnitReport
from compress.quantize.reconstruct.settings import RoundingSettings, StepSettings
from compress.quantize.reconstruct.units import Unit, find_units

__all__ = [
    "Finished",
    "Mode",
    "Reconstruction",
    "RoundingSettings",
    "StepSettings",
    "Unit",
    "UnitReport",
    "decide_rounding",
    "decide_steps",
    "find_units",
    "fit_rounding",
    "fit_steps",
    "mean_loss",
    "reconstruction_loss",
    "settled_share",
]
