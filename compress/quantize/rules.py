"""Which layer gets which formats: the stage's own, then the recipe's rules in order, the last match winning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

from compress.config import suggest
from compress.errors import RecipeError
from compress.formats import get_format
from compress.models.adapter import LayerInfo, Role
from compress.quantize.settings import ActivationSettings, Rule, Split, WeightSettings
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
    timesteps: Callable[[], tuple[float, ...]] = tuple,
) -> list[Assignment]:
    """The formats of every layer, in the layers' order.

    Args:
        timesteps: asked for the timesteps of the trajectory where each has a scale of its own.

    Raises:
        RecipeError: a rule matches no layer, or a layer has folded weights and no integer activations.
    """
    for number, rule in enumerate(rules):
        if not any(matches(rule, layer) for layer in layers):
            raise RecipeError(f"{rule.describe()} matches no layer", hint=_known(rule, layers), path=("rules", number))
    once = cache(timesteps)
    return [_assign_one(layer, weights, activations, rules, once) for layer in layers]


def _assign_one(
    layer: LayerInfo,
    weights: WeightSettings,
    activations: ActivationSettings,
    rules: Sequence[Rule],
    timesteps: Callable[[], tuple[float, ...]],
) -> Assignment:
    keep = False
    for rule in rules:
        if matches(rule, layer):
            keep = rule.keep or (keep and rule.weights is None)
            weights, activations = rule.weights or weights, rule.activations or activations
    spec = None if keep else LayerSpec(weights.spec(), activations.spec(timesteps), weights.mode)
    if spec is not None and spec.mode == "folded":
        _check_folding(layer, spec)
    return Assignment(layer, spec, activations)


def split_layers(assignments: Sequence[Assignment], split: Split, *, asked: bool) -> list[Assignment]:
    """The assignments with the layers divided that `split` names, where the model tells at which channel.

    Args:
        asked: the recipe says so itself. Otherwise layers of unknown channel stay whole, and there need be none.

    Raises:
        RecipeError: the recipe asks for it, and no layer reads a concatenation, or the channel of one is not known.
    """
    if split == "none":
        return list(assignments)
    chosen = [a for a in assignments if a.info.role is Role.SKIP and (split == "concatenation" or _is_shortcut(a.info))]
    if asked and not chosen:
        raise RecipeError(
            f"`split: {split}` matches no layer; none is known to read a concatenation with a skip",
            hint="leave out `split`",
            path=("split",),
        )
    names = {a.info.name for a in chosen if a.spec is not None}
    unknown = [a.info.name for a in chosen if a.info.name in names and a.info.split is None]
    if asked and unknown:
        raise RecipeError(
            f"the model does not tell at which channel `{unknown[0]}` divides into backbone and skip",
            hint="keep it by a rule, or leave out `split`",
            path=("split",),
        )
    return [_divided(a) if a.info.name in names else a for a in assignments]


def _is_shortcut(layer: LayerInfo) -> bool:
    """A 1x1 convolution or a linear layer: what has no neighbours to look at."""
    return all(extent == 1 for extent in layer.weight_shape[2:])


def _divided(assignment: Assignment) -> Assignment:
    assert assignment.spec is not None
    return replace(assignment, spec=replace(assignment.spec, split=assignment.info.split))


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
