"""Which layer gets which formats: the stage's own, then the recipe's rules in order, the last match winning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from compress.config import suggest
from compress.errors import RecipeError
from compress.formats import get_format
from compress.models.adapter import LayerInfo
from compress.quantize.settings import ActivationSettings, Rule, WeightSettings
from compress.quantize.spec import LayerSpec


@dataclass(frozen=True)
class Assignment:
    """One layer, its formats (None: kept in floating point), and the observer settings of a static input."""

    info: LayerInfo
    spec: LayerSpec | None
    activations: ActivationSettings


def matches(rule: Rule, layer: LayerInfo) -> bool:
    """Whether a rule chooses this layer: its role and its glob must both fit where given."""
    by_role = rule.role is None or rule.role == layer.role
    return by_role and (rule.match is None or fnmatchcase(layer.name, rule.match))


def assign(
    layers: Sequence[LayerInfo],
    weights: WeightSettings,
    activations: ActivationSettings,
    rules: Sequence[Rule],
) -> list[Assignment]:
    """The formats of every layer, in the layers' order.

    Raises:
        RecipeError: a rule matches no layer, or a layer has folded weights and no integer activations.
    """
    for number, rule in enumerate(rules):
        if not any(matches(rule, layer) for layer in layers):
            raise RecipeError(f"{rule.describe()} matches no layer", hint=_known(rule, layers), path=("rules", number))
    return [_assign_one(layer, weights, activations, rules) for layer in layers]


def _assign_one(
    layer: LayerInfo, weights: WeightSettings, activations: ActivationSettings, rules: Sequence[Rule]
) -> Assignment:
    keep = False
    for rule in rules:
        if matches(rule, layer):
            keep = rule.keep or (keep and rule.weights is None)
            weights, activations = rule.weights or weights, rule.activations or activations
    spec = None if keep else LayerSpec(weights.spec(), activations.spec(), weights.mode)
    if spec is not None and spec.mode == "folded":
        _check_folding(layer, spec)
    return Assignment(layer, spec, activations)


def _check_folding(layer: LayerInfo, spec: LayerSpec) -> None:
    """Folding costs accuracy, and only integer products gain by it."""
    if spec.activations is None or get_format(spec.activations.format).kind != "int":
        raise RecipeError(
            f"`{layer.name}` has `mode: folded` without integer activations, which alone gain by it",
            hint="leave out `mode`, or add `activations: {format: int8}`",
        )


def _known(rule: Rule, layers: Sequence[LayerInfo]) -> str:
    if rule.match is not None:
        close = suggest(rule.match.replace("*", ""), [layer.name for layer in layers])
        example = close or layers[0].name
        return f"`compress inspect` lists the layers, such as `{example}`"
    return f"this model has the roles {', '.join(sorted({layer.role.value for layer in layers}))}"
