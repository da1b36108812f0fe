"""Stand-ins for the settings classes, in the shape of the normative recipe (ARCHITECTURE section 6)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress.config import Config


class Layer(StrEnum):
    MODULATION = "modulation"
    CONV = "conv"


class Source(Config):
    source: str = Field(description="Where the model is.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Type it computes in.")


class Sampler(Config):
    kind: str = Field("ddim", description="Scheduler.")
    steps: int = Field(20, ge=1, le=1000, description="Sampling steps.")
    guidance_scale: float = Field(1.0, description="Guidance.")


class Uniform(Config):
    kind: Literal["uniform"] = "uniform"
    count: int = Field(20, gt=0, description="Timesteps.")


class Bands(Config):
    kind: Literal["bands"] = "bands"
    edges: tuple[float, ...] = Field(min_length=1, description="Edges of the bands.")

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if list(edges) != sorted(edges):
            raise ValueError("band edges must ascend")
        return edges


class Calibration(Config):
    sampler: Sampler = Field(Sampler(), description="How it samples.")
    samples: int = Field(64, ge=1, description="Samples.")
    timesteps: Annotated[Uniform | Bands, Field(discriminator="kind")] = Field(Uniform(), description="Which steps.")


class Magnitude(Config):
    kind: Literal["magnitude"] = "magnitude"
    keep: float = Field(0.5, gt=0, le=1, description="Part that stays.")


class Tinyfusion(Config):
    kind: Literal["tinyfusion"] = "tinyfusion"
    keep: float = Field(0.5, gt=0, le=1, description="Part that stays.")
    iterations: int = Field(100, gt=0, description="Training steps.")
    learning_rate: float = Field(1e-4, gt=0, description="Step size.")


class Prune(Config):
    kind: Literal["prune"] = "prune"
    component: Literal["denoiser"] = Field("denoiser", description="What is pruned.")
    method: Annotated[Magnitude | Tinyfusion, Field(discriminator="kind")] = Field(description="How.")


class Weights(Config):
    format: str = Field(description="Number format.")
    granularity: Literal["tensor", "channel", "group"] = Field("channel", description="What shares a scale.")
    group: int | None = Field(None, multiple_of=8, description="Positions per scale.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.granularity == "group") != (self.group is not None):
            raise ValueError("`group` goes with `granularity: group`; give both or neither")
        return self


class Budget(Config):
    average_bits: float = Field(gt=0, description="Bits per weight.")


class Mixed(Config):
    budget: Budget = Field(description="What may be spent.")
    formats: tuple[str, ...] = Field(description="What to choose from.")


class Rule(Config):
    role: Layer | None = Field(None, description="Role of the layers.")
    match: str | None = Field(None, pattern=r"^\S+$", description="Glob of names.")
    keep: bool = Field(False, description="Leave in floating point.")


class Nearest(Config):
    """The only quantization method here: a union with one member is no union."""

    kind: Literal["nearest"] = "nearest"


class Quantize(Config):
    kind: Literal["quantize"] = "quantize"
    method: Nearest = Field(Nearest(), description="How.")
    weights: Weights | Mixed = Field(description="Format of weights.")
    threads: int | Literal["auto"] = Field("auto", description="Threads.")
    rules: tuple[Rule, ...] = Field((), description="Exceptions.")


def _gate_tag(value: Any) -> str:
    """Of what a recipe says, or of the settings made from it."""
    names = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return "ceiling" if "max" in names else "floor"


class Ceiling(Config):
    metric: str = Field(description="Name.")
    max: float = Field(description="Bound.")


class Floor(Config):
    metric: str = Field(description="Name.")
    min: float = Field(description="Bound.")


Gate = Annotated[Annotated[Ceiling, Tag("ceiling")] | Annotated[Floor, Tag("floor")], Discriminator(_gate_tag)]
Stage = Annotated[Prune | Quantize, Field(discriminator="kind")]


class Standin(Config):
    """One compression job."""

    version: Literal[1] = Field(1, description="Version of the format.")
    name: str = Field(min_length=1, description="Name in reports.")
    seed: int = Field(0, ge=0, description="Of every random draw.")
    model: Source = Field(description="The model.")
    calibration: Calibration = Field(Calibration(), description="Data.")
    stages: tuple[Stage, ...] = Field(description="What is done, in order.")
    output: Path | None = Field(None, description="Where results go.")
    size: tuple[int, int] = Field((8, 8), description="Height, width.")
    notes: dict[str, int] = Field({}, description="Anything.")
    gates: tuple[Gate, ...] = Field((), description="Bounds.")

    @model_validator(mode="after")
    def _order(self) -> Self:
        kinds = [stage.kind for stage in self.stages]
        if "quantize" in kinds and "prune" in kinds[kinds.index("quantize") :]:
            place = len(kinds) - 1 - kinds[::-1].index("prune")
            raise ValueError(f"stages.{place}: `prune` must come before `quantize`")
        return self


TEXT = """\
version: 1
name: digits-dit-w4a8            # line 2
seed: 0
model:
  source: zoo://digits-dit
  dtype: float32
calibration:
  sampler: {kind: ddim, steps: 20, guidance_scale: 1.5}
  samples: 64
  timesteps: {kind: uniform, count: 20}
stages:
  - kind: prune                  # line 12
    method: {kind: tinyfusion, keep: 0.5}
  - kind: quantize
    method: {kind: nearest}
    weights: {format: int4, granularity: group, group: 64}
    threads: auto
    rules:
      - {role: modulation}
      - match: "*.proj_out"      # line 20
        keep: true
gates:
  - {metric: size_ratio, max: 0.2}
  - {metric: psnr, min: 30}
"""
"""Recipe with every stand-in in it; the tests change one line of it at a time."""


def changed(**by_line: str) -> str:
    """TEXT with lines replaced: `changed(l3="seed: x")`; a replacement may have several lines or be empty."""
    lines = TEXT.splitlines()
    for name, replacement in by_line.items():
        lines[int(name.removeprefix("l")) - 1] = replacement
    return "\n".join(lines) + "\n"
