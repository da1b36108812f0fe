"""What a recipe's `evaluate:` may list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.config import Config


class NoiseError(Config):
    """Error of the predicted noise on stored (sample, t, condition) pairs, per noise band."""

    kind: Literal["noise_error"] = "noise_error"
    n: int = Field(2048, ge=16, description="Pairs, spread evenly over the noise levels of the sampler.")
    bands: int = Field(8, ge=1, le=64, description="Noise bands, of equal numbers of pairs.")


class Paired(Config):
    """PSNR and SSIM against the original's images, drawn from the same noise."""

    kind: Literal["paired"] = "paired"
    n: int = Field(128, ge=2, description="Image pairs.")
    onnx_n: int | None = Field(None, ge=2, description="Image pairs for the ONNX model; by default min(n, 256).")


class Generation(Config):
    """Fréchet distance, kernel distance and class accuracy of generated images, by the model's bundled classifier."""

    kind: Literal["generation"] = "generation"
    n: int = Field(1000, ge=16, description="Images per artefact.")
    onnx_n: int | None = Field(None, ge=16, description="Images of the ONNX model; by default min(n, 256).")


class Latency(Config):
    """Time of one denoiser call, interleaved with the original's, and the peak memory of a process that makes one."""

    kind: Literal["latency"] = "latency"
    batch: int = Field(16, ge=1, description="Samples per call.")
    threads: int = Field(2, ge=1, description="Threads of torch and onnxruntime.")
    rounds: int = Field(20, ge=3, description="Timed calls of each artefact.")
    memory: bool = Field(True, description="Measure the peak memory too, in a process of its own per artefact.")


class TemporalError(Config):
    """Error of what the blocks are told of timestep and class, and whether each timestep stays nearest to itself."""

    kind: Literal["temporal_error"] = "temporal_error"
    classes: int = Field(
        16, ge=1, description="Classes, at even intervals, besides that for no class; all when there are not more."
    )


EvaluateEntry = Annotated[NoiseError | Paired | Generation | Latency | TemporalError, Field(discriminator="kind")]


def onnx_count(entry: Paired | Generation) -> int:
    """Images the ONNX model draws: fewer by default, since they only confirm what parity measures."""
    return entry.onnx_n if entry.onnx_n is not None else min(entry.n, 256)
