"""How long and how fast the engine learns. Defaults are those of Q-Diffusion's released code (Li et al. 2023)."""

from __future__ import annotations

from pydantic import Field

from compress.config import Config


class RoundingSettings(Config):
    """Learning of the weights' rounding (phase W)."""

    iterations: int = Field(20_000, ge=1, description="Steps of Adam for each unit.")
    batch_size: int = Field(32, ge=1, description="Calibration rows of a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam, for AdaRound's V; fewer iterations need more.")
    regularizer: float = Field(0.01, ge=0, description="Weight of the term that drives h(V) to 0 or 1.")
    warmup: float = Field(0.2, ge=0, le=1, description="Share of the iterations without that term.")
    beta_start: float = Field(20.0, gt=0, description="Exponent of that term when it sets in.")
    beta_end: float = Field(2.0, gt=0, description="Its exponent at the end.")
    norm: float = Field(2.0, gt=0, description="Exponent of the reconstruction error.")
    keep_better: bool = Field(
        True, description="Keep rounding to nearest for a unit whose learned rounding has the larger error."
    )


class StepSettings(Config):
    """Learning of static input scales (phase A)."""

    iterations: int = Field(5_000, ge=1, description="Steps of Adam for each unit.")
    batch_size: int = Field(32, ge=1, description="Calibration rows of a step.")
    learning_rate: float = Field(4e-4, gt=0, description="Of Adam at the start; it falls to 0 along a cosine.")
    norm: float = Field(2.4, gt=0, description="Exponent of the reconstruction error.")
    keep_better: bool = Field(True, description="Keep the measured scales of a unit if the learned ones are worse.")
