"""The numbers that make two measurements comparable: how methods are ranked, and what headline rows add."""

from __future__ import annotations

from pydantic import Field

from compress.calibration.sampler import Sampler
from compress.config import Config
from compress.evaluate.within_noise import SEEDS


class Protocol(Config):
    """How a compressed model is measured against full precision (docs/evaluation.md, "The measuring protocol")."""

    sampler: Sampler = Field(Sampler(kind="ddim", steps=20, guidance_scale=1.5), description="Draws every image.")
    pairs: int = Field(2048, ge=16, description="Stored (x, t, condition) pairs of the noise error.")
    bands: int = Field(8, ge=1, description="Noise bands the error is split into.")
    images: int = Field(128, ge=2, description="Image pairs of the PSNR.")
    headline_images: int = Field(1000, ge=16, description="Images of class accuracy and Fréchet distance.")
    calibration_samples: int = Field(64, ge=1, description="Sampled images whose model calls methods may learn from.")
    seeds: int = Field(SEEDS, ge=SEEDS, description="Seeds full precision is measured at, for its own spread.")
