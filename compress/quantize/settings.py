"""The number formats of a recipe's quantize stage, and the rules that choose layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from compress.config import Config
from compress.errors import FormatError
from compress.formats import FORMATS, WeightSpec, get_format
from compress.formats.codebook import ScaleDtype
from compress.kernels.folding import MOST_BITS
from compress.models.adapter import Role
from compress.quantize.observers import ObserverSettings
from compress.quantize.observers.minmax import MinMax
from compress.quantize.spec import ActivationSpec


def _known_format(name: str) -> str:
    try:
        fmt = get_format(name)
    except FormatError as error:
        raise ValueError(str(error)) from None
    if not fmt.signed:
        raise ValueError(f"`{name}` is the code of asymmetric activations; write `{name[1:]}` with `symmetric: false`")
    return name


def _known_activation_format(name: str) -> str:
    if name != "none" and get_format(_known_format(name)).weights_only:
        raise ValueError(f"`{name}` is a format of weights; activations take `fp4_e2m1`, `int8` and others")
    return name


Split = Literal["none", "shortcut", "concatenation"]
"""Which layers on a concatenation [backbone, skip] become two operators: none, the 1x1 shortcuts, or all of them."""

SIGNED_FORMATS = [name for name, fmt in FORMATS.items() if fmt.signed]
FormatName = Annotated[str, AfterValidator(_known_format), Field(json_schema_extra={"enum": list(SIGNED_FORMATS)})]
ActivationFormatName = Annotated[
    str,
    AfterValidator(_known_activation_format),
    Field(json_schema_extra={"enum": ["none", *(name for name in SIGNED_FORMATS if not FORMATS[name].weights_only)]}),
]


class WeightSettings(Config):
    """Number format of weights."""

    format: FormatName = Field(description="Number format of a weight.")
    granularity: Literal["tensor", "channel", "group"] = Field("channel", description="What shares one scale.")
    group: int | None = Field(None, ge=8, description="Input positions that share a scale, for granularity group.")
    symmetric: bool = Field(True, description="False adds a zero point to every scale (integer formats).")
    scale: ScaleDtype | None = Field(
        None, description="Stored type of the scales; by default float16 for groups, float32 otherwise."
    )
    mode: Literal["exact", "folded"] = Field(
        "exact",
        description="folded: block scales, or the table of nf4, rounded to int8; for nf4 and small groups.",
    )

    @model_validator(mode="before")
    @classmethod
    def _natural_blocks(cls, data: object) -> object:
        """Formats that prescribe their blocks and scales say so themselves."""
        if not isinstance(data, dict) or str(data.get("format")) not in FORMATS:
            return data
        layout = FORMATS[str(data["format"])].layout
        if layout is None:
            return data
        natural = {"granularity": "group", "group": layout.group, "scale": layout.scale_dtype}
        return natural | {name: value for name, value in data.items() if value is not None}

    @model_validator(mode="after")
    def _prescribed(self) -> Self:
        fmt = get_format(self.format)
        if fmt.layout is None:
            if self.scale not in (None, "float32", "float16"):
                raise ValueError(f"`{self.format}` has no {self.scale} scales; use `float32` or `float16`")
        elif (self.granularity, self.group, self.scale) != ("group", fmt.layout.group, fmt.layout.scale_dtype):
            raise ValueError(
                f"`{self.format}` is groups of {fmt.layout.group} with {fmt.layout.scale_dtype} scales; "
                "leave out `granularity`, `group` and `scale`"
            )
        if self.mode == "folded" and fmt.bits > MOST_BITS:
            raise ValueError(f"`mode: folded` is for formats of up to {MOST_BITS} bits, `{self.format}` has {fmt.bits}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.granularity == "group") != (self.group is not None):
            raise ValueError("`group` goes with `granularity: group`; give both or neither")
        if self.group is not None and self.group % 8:
            raise ValueError(f"group {self.group} is not a multiple of 8; codes of a group fill whole bytes")
        if not self.symmetric and get_format(self.format).kind != "int":
            raise ValueError(f"`{self.format}` has no zero point; `symmetric: false` is for integer formats")
        return self

    def spec(self) -> WeightSpec:
        scale = self.scale or ("float16" if self.granularity == "group" else "float32")
        return WeightSpec(self.format, self.granularity, self.group, self.symmetric, scale)


class ActivationSettings(Config):
    """Number format of layer inputs; `format: none` leaves them in floating point."""

    format: ActivationFormatName = Field("none", description="Number format of a layer's input; none for weight-only.")
    granularity: Literal["token", "tensor"] = Field("token", description="What shares one scale.")
    mode: Literal["dynamic", "static"] = Field("dynamic", description="Scale found at run time or from the trajectory.")
    symmetric: bool = Field(True, description="False: unsigned codes with a zero point (static, int8 and int4).")
    timesteps: Literal["shared", "each"] = Field(
        "shared", description="each: a static scale for every timestep of the calibration trajectory."
    )
    observer: ObserverSettings = Field(MinMax(), description="How a static range is found.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.granularity, self.mode) not in (("token", "dynamic"), ("tensor", "static")):
            raise ValueError(
                f"{self.mode} activations per {self.granularity} do not exist: use `granularity: token` with "
                "`mode: dynamic`, or `granularity: tensor` with `mode: static`"
            )
        if not self.symmetric and (self.mode == "dynamic" or f"u{self.format}" not in FORMATS):
            raise ValueError("`symmetric: false` is for static int8 and int4 activations")
        if self.timesteps == "each" and self.mode == "dynamic":
            raise ValueError("`timesteps: each` is for static activations; dynamic scales follow every input already")
        return self

    def spec(self, timesteps: Callable[[], tuple[float, ...]] = tuple) -> ActivationSpec | None:
        """The format, None for `none`; `timesteps` is asked for those of the trajectory where each has a scale."""
        if self.format == "none":
            return None
        each = timesteps() if self.timesteps == "each" else ()
        return ActivationSpec(self.format, self.mode, self.symmetric, each)


class Rule(Config):
    """Layers chosen by role, by name, or by both, and what becomes of them; the last matching rule wins."""

    role: Role | None = Field(None, description="Layers with this role.")
    match: str | None = Field(None, description="Layers whose name fits this glob, e.g. `*.proj_out`.")
    keep: bool = Field(False, description="Leave these layers in floating point.")
    weights: WeightSettings | None = Field(None, description="Weight format of these layers instead of the stage's.")
    activations: ActivationSettings | None = Field(None, description="Input format of these layers.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.role is None and self.match is None:
            raise ValueError("a rule needs `role`, `match` or both")
        if self.keep and (self.weights or self.activations):
            raise ValueError("`keep: true` leaves no place for `weights` or `activations`")
        if not self.keep and not self.weights and not self.activations:
            raise ValueError("a rule needs `keep: true`, `weights` or `activations`")
        return self

    def describe(self) -> str:
        return " and ".join(f"{k} `{v}`" for k, v in (("role", self.role), ("match", self.match)) if v is not None)
