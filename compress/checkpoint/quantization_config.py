"""`quantization_config` of a component's config.json, in compressed-tensors' vocabulary (ARCHITECTURE section 5).

`config_groups` lists each distinct pair of number formats once, with the exact names of its layers as `targets`; every
linear or convolution that no group names is in `ignore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from compress.errors import CheckpointError
from compress.formats import WeightSpec, get_format
from compress.quantize.spec import ActivationSpec, LayerSpec

QUANT_METHOD = "compress"
SCHEMA_VERSION = 1


def to_config(specs: Mapping[str, LayerSpec], ignored: Sequence[str]) -> dict[str, Any]:
    """The JSON form of a component's layer formats."""
    names: dict[LayerSpec, list[str]] = {}
    for name, spec in specs.items():
        names.setdefault(spec, []).append(name)
    groups = {
        f"group_{number}": {
            "targets": targets,
            "weights": _weights(spec.weights),
            "input_activations": None if spec.activations is None else _activations(spec.activations),
            **({"mode": spec.mode} if spec.mode != "exact" else {}),
        }
        for number, (spec, targets) in enumerate(names.items())
    }
    return {
        "quant_method": QUANT_METHOD,
        "version": SCHEMA_VERSION,
        "format": "mixed-precision" if len(groups) > 1 else "pack-quantized",
        "config_groups": groups,
        "ignore": list(ignored),
    }


def _weights(spec: WeightSpec) -> dict[str, Any]:
    fmt = get_format(spec.format)
    return {
        "num_bits": fmt.bits,
        "type": fmt.kind,
        "symmetric": spec.symmetric,
        "strategy": spec.granularity,
        "group_size": spec.group,
        "format": spec.format,
        "scale_dtype": spec.scale_dtype,
    }


def _activations(spec: ActivationSpec) -> dict[str, Any]:
    fmt = get_format(spec.format)
    return {
        "num_bits": fmt.bits,
        "type": fmt.kind,
        "symmetric": spec.symmetric,
        "strategy": "token" if spec.mode == "dynamic" else "tensor",
        "dynamic": spec.mode == "dynamic",
        "format": spec.format,
    }


def check_version(config: Mapping[str, Any], where: str) -> None:
    """Refuse what a newer version wrote.

    Raises:
        CheckpointError: the schema version is newer, or no number.
    """
    version = config.get("version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"quantization_config has the version {version!r}", where=where, hint="is it damaged?")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"written with checkpoint schema {version}, this version reads up to {SCHEMA_VERSION}",
            where=where,
            hint="upgrade with `pip install -U compress`",
        )


def from_config(config: Mapping[str, Any], where: str = "config.json") -> dict[str, LayerSpec]:
    """Layer formats by layer name, from the JSON form.

    Raises:
        CheckpointError: newer schema, an unknown format or mode, or a field that is missing.
    """
    check_version(config, where)
    specs: dict[str, LayerSpec] = {}
    for group in config["config_groups"].values():
        try:
            weights, inputs = group["weights"], group["input_activations"]
            activations = None if inputs is None else _activation_spec(inputs)
            spec = LayerSpec(_weight_spec(weights), activations, _mode(group, where))
        except KeyError as error:
            raise CheckpointError(f"config_groups lacks {error}", where=where) from None
        specs |= dict.fromkeys(group["targets"], spec)
    return specs


def _mode(group: Mapping[str, Any], where: str) -> Literal["exact", "folded"]:
    """Groups without a mode are exact."""
    if (mode := group.get("mode", "exact")) not in ("exact", "folded"):
        raise CheckpointError(f"config_groups has the mode {mode!r}, not exact or folded", where=where)
    return cast(Literal["exact", "folded"], mode)


def _weight_spec(weights: Mapping[str, Any]) -> WeightSpec:
    get_format(weights["format"])
    return WeightSpec(
        weights["format"], weights["strategy"], weights["group_size"], weights["symmetric"], weights["scale_dtype"]
    )


def _activation_spec(inputs: Mapping[str, Any]) -> ActivationSpec:
    get_format(inputs["format"])
    return ActivationSpec(inputs["format"], "dynamic" if inputs["dynamic"] else "static", inputs["symmetric"])
