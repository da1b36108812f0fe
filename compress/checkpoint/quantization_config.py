"""`quantization_config` of a component's config.json, in compressed-tensors' vocabulary (ARCHITECTURE section 5).

`config_groups` lists each distinct pair of number formats once, with the exact names of its layers as `targets`; every
linear or convolution that no group names is in `ignore`. What a layer need not have is there only where it is set:
`mode`, `split` (the input channel at which the layer divides into `backbone` and `skip`), `smooth`, and `timesteps` of
`input_activations` (ascending; a scale is stored for each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

from compress.errors import CheckpointError
from compress.formats import WeightSpec, get_format
from compress.quantize.attention import AttentionSpec
from compress.quantize.cached_embeddings import EmbeddingCache
from compress.quantize.spec import ActivationSpec, LayerSpec

QUANT_METHOD = "compress"
SCHEMA_VERSION = 2
"""1, or 2 where attention is quantized, time embeddings are tables, or a layer is split, smoothed or has scales per
timestep.
"""


def to_config(
    specs: Mapping[str, LayerSpec],
    ignored: Sequence[str],
    attention: AttentionSpec | None = None,
    cache: EmbeddingCache | None = None,
) -> dict[str, Any]:
    """The JSON form of a component's layer formats; `attention` and `cached_embeddings` are there only where they are
    quantized and cached.
    """
    names: dict[LayerSpec, list[str]] = {}
    for name, spec in specs.items():
        names.setdefault(spec, []).append(name)
    groups = {
        f"group_{number}": {
            "targets": targets,
            "weights": _weights(spec.weights),
            "input_activations": None if spec.activations is None else _activations(spec.activations),
            **({"mode": spec.mode} if spec.mode != "exact" else {}),
            **({"split": spec.split} if spec.split is not None else {}),
            **({"smooth": True} if spec.smooth else {}),
        }
        for number, (spec, targets) in enumerate(names.items())
    }
    return {
        "quant_method": QUANT_METHOD,
        "version": max(map(_version_of, specs.values()), default=1) if attention is None and cache is None else 2,
        "format": "mixed-precision" if len(groups) > 1 else "pack-quantized",
        "config_groups": groups,
        "ignore": list(ignored),
        **({} if attention is None else {"attention": attention.as_config()}),
        **({} if cache is None else {"cached_embeddings": cache.to_config()}),
    }


def _version_of(spec: LayerSpec) -> int:
    timed = spec.activations is not None and spec.activations.timesteps
    return 2 if timed or spec.smooth or spec.split is not None else 1


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
        **({"timesteps": list(spec.timesteps)} if spec.timesteps else {}),
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
        CheckpointError: newer schema, an unknown format or mode, a split or timesteps that make no sense, or a field
            that is missing.
    """
    check_version(config, where)
    specs: dict[str, LayerSpec] = {}
    if not isinstance(groups := config.get("config_groups"), Mapping):
        raise CheckpointError("quantization_config has no config_groups", where=where, hint="is it damaged?")
    for group in groups.values():
        try:
            weights, inputs = group["weights"], group["input_activations"]
            activations = None if inputs is None else _activation_spec(inputs, where)
            extra = (_mode(group, where), _split(group, where), bool(group.get("smooth", False)))
            spec = LayerSpec(_weight_spec(weights), activations, *extra)
        except KeyError as error:
            raise CheckpointError(f"config_groups lacks {error}", where=where) from None
        specs |= dict.fromkeys(group["targets"], spec)
    return specs


def _mode(group: Mapping[str, Any], where: str) -> Literal["exact", "folded"]:
    """Groups without a mode are exact."""
    if (mode := group.get("mode", "exact")) not in ("exact", "folded"):
        raise CheckpointError(f"config_groups has the mode {mode!r}, not exact or folded", where=where)
    return cast(Literal["exact", "folded"], mode)


def _split(group: Mapping[str, Any], where: str) -> int | None:
    split = group.get("split")
    if split is not None and (not isinstance(split, int) or split < 1):
        raise CheckpointError(f"config_groups has the split {split!r}, not a number of channels", where=where)
    return split


def _weight_spec(weights: Mapping[str, Any]) -> WeightSpec:
    get_format(weights["format"])
    return WeightSpec(
        weights["format"], weights["strategy"], weights["group_size"], weights["symmetric"], weights["scale_dtype"]
    )


def _activation_spec(inputs: Mapping[str, Any], where: str) -> ActivationSpec:
    get_format(inputs["format"])
    mode: Literal["dynamic", "static"] = "dynamic" if inputs["dynamic"] else "static"
    return ActivationSpec(inputs["format"], mode, inputs["symmetric"], _timesteps(inputs, where))


def _timesteps(inputs: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Inputs without timesteps have one scale for all."""
    found = inputs.get("timesteps", [])
    ascending = isinstance(found, list) and all(isinstance(t, int | float) for t in found)
    if not ascending or any(low >= high for low, high in pairwise(found)) or (found and inputs["dynamic"]):
        raise CheckpointError("timesteps of a static input are ascending numbers", where=where)
    return tuple(map(float, found))
