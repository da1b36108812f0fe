"""Configurations of the operators, as far as the bodies of their ONNX functions depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from compress.errors import ExportError
from compress.kernels.folding import MOST_BITS, whole_factor
from compress.kernels.onnx_activations import ActForm
from compress.kernels.onnx_vq import VqForm
from compress.kernels.onnx_weights import Folding, WeightForm
from compress.kernels.schema import Operator


class TensorFacts(NamedTuple):
    """Element type (`float32`, `float16`, `uint8`, …) and extents of one input; None where an extent is not known.

    `values`: the entries of a code table, None for other inputs or where they are not constant.
    """

    dtype: str
    shape: tuple[int | None, ...]
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ConvAttributes:
    """Attributes of a convolution."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def attributes(self) -> dict[str, Any]:
        """The same for ONNX's convolutions."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.stride),
            "pads": [*self.padding, *self.padding],
            "dilations": list(self.dilation),
            "group": self.groups,
        }


@dataclass(frozen=True)
class Variant:
    """All that the body of a function depends on; equal variants share a function.

    `inputs` are the names of the present inputs, `halves` those among them that are float16.
    """

    operator: Operator
    inputs: tuple[str, ...]
    halves: tuple[str, ...]
    weight: WeightForm | VqForm
    act: ActForm | None
    geometry: ConvAttributes | None
    activation: str = "none"

    @property
    def overload(self) -> str:
        """A name that tells variants apart, readable: `w4_group_bias_int8_dynamic`."""
        parts = self.weight.overload_parts
        parts += [name for name in ("bias", "smooth") if name in self.inputs]
        parts += ["lowrank"] if "low_rank_a" in self.inputs else []
        if self.act:
            parts += [self.act.format, self.act.scale]
            parts += ["zero"] if self.act.zero_point else []
            parts += [f"group{self.act.group}of{self.act.length}rank{self.act.rank}"] if self.act.group else []
        parts += [f"half_{name}" for name in self.halves]
        parts += [self.activation] if self.activation != "none" else []
        parts += ["residual"] if "residual" in self.inputs else []
        if self.geometry:
            g = self.geometry
            pairs = (("kernel", g.kernel), ("stride", g.stride), ("pad", g.padding), ("dilation", g.dilation))
            parts += [f"{name}{a}x{b}" for name, (a, b) in pairs] + [f"groups{g.groups}"]
        return "_".join(parts)

    @property
    def integer_route(self) -> bool:
        """Whether codes are multiplied as integers."""
        if not (self.act and self.act.has_byte_codes):
            return False
        if isinstance(self.weight, VqForm):
            return self.weight.whole
        if self.weight.table or self.weight.scales == "group":
            return False
        # ConvInteger takes one zero point for the whole weight.
        allowed = (None, "tensor", "channel") if self.geometry is None else (None, "tensor")
        return self.weight.zeros in allowed


def variant_of(operator: Operator, attributes: Mapping[str, Any], inputs: Mapping[str, TensorFacts]) -> Variant:
    """The variant of a call, from its attributes (all of them) and present inputs.

    Raises:
        ExportError: the combination has no function; says why.
    """
    if len(inputs["x"].shape) < 2:
        raise ExportError("x has one axis only", hint="give it an axis of rows")
    geometry = None
    if "kernel" in attributes:
        kernel, stride, padding, dilation = (_pair(attributes[n]) for n in ("kernel", "stride", "padding", "dilation"))
        geometry = ConvAttributes(kernel, stride, padding, dilation, int(attributes["groups"]))
    names = tuple(tensor.name for tensor in operator.inputs if tensor.name in inputs)
    halves = tuple(name for name in names if inputs[name].dtype == "float16")
    weight = _weight_form(attributes, inputs, geometry)
    activation = str(attributes["activation"])
    return Variant(operator, names, halves, weight, _act_form(attributes, inputs), geometry, activation)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _weight_form(
    attributes: Mapping[str, Any], inputs: Mapping[str, TensorFacts], geometry: ConvAttributes | None
) -> WeightForm | VqForm:
    k = _static(inputs["x"].shape[1 if geometry else -1], "x has an unknown number of channels")
    if geometry:
        k = k // geometry.groups * geometry.kernel[0] * geometry.kernel[1]
    bits = int(attributes["bits"])
    if "codebook" in inputs:
        types = {"codebook_dtype": inputs["codebook"].dtype, "scale_dtype": inputs["scales"].dtype}
        return VqForm.of(bits, int(attributes["d"]), k, mode=attributes["mode"], **types)
    block, length = WeightForm.trims(bits, int(attributes["block_size"]), k)
    return WeightForm(
        bits=bits,
        scales=_granularity(inputs["scales"]),
        zeros=_granularity(inputs["zero_points"]) if "zero_points" in inputs else None,
        table="table" in inputs,
        scale_type=inputs["scales"].dtype,
        global_scale="global_scale" in inputs,
        folding=_folding(attributes, inputs),
        block=block,
        k=length,
    )


def _folding(attributes: Mapping[str, Any], inputs: Mapping[str, TensorFacts]) -> Folding:
    """What `MatmulCall.folds` means for a node: block scales, or `MatmulCall.rounds_table`."""
    if attributes["mode"] != "folded":
        return "none"
    bits, folding = int(attributes["bits"]), "blocks" if _granularity(inputs["scales"]) == "group" else "none"
    if "table" in inputs:
        values = inputs["table"].values
        if values is None:
            raise ExportError("the code table of a folded layer is not constant", hint="use mode 'exact'")
        if bits > MOST_BITS or whole_factor(values) is None:
            folding = "table"
    if folding != "none" and bits > MOST_BITS:
        raise ExportError(f"weights of {bits} bits cannot be folded", hint="use mode 'exact'")
    return cast(Folding, folding)


def _granularity(facts: TensorFacts) -> str:
    n, blocks = (_static(extent, "scales of unknown shape") for extent in facts.shape)
    if blocks > 1:
        return "group"
    return "tensor" if n == 1 else "channel"


def _act_form(attributes: Mapping[str, Any], inputs: Mapping[str, TensorFacts]) -> ActForm | None:
    name, group = str(attributes["act_format"]), int(attributes["act_group"])
    if name == "none":
        return None
    given = [inputs[n].shape for n in ("act_scale", "act_zero_point") if n in inputs]
    one = all(extent == 1 for shape in given for extent in shape)
    scale = "dynamic" if not given else "scalar" if one else "given"
    x = inputs["x"].shape
    length = _static(x[-1], "x has a row of unknown length") if group else 0
    return ActForm(name, scale, "act_zero_point" in inputs, group, length, len(x) if group else 0)


def _static(extent: int | None, problem: str) -> int:
    if extent is None:
        raise ExportError(problem, hint="this extent must be fixed at export")
    return extent
