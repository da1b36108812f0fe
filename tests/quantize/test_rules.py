import pytest
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.formats import WeightSpec
from compress.models.adapter import LayerInfo, Role
from compress.quantize.rules import assign, split_layers
from compress.quantize.settings import ActivationSettings, Rule, WeightSettings

LAYERS = [
    LayerInfo("blocks.0.attn.to_q", "linear", Role.ATTENTION_Q, "blocks.0", (8, 8), True),
    LayerInfo("blocks.0.ff.in", "linear", Role.FF_IN, "blocks.0", (32, 8), True),
    LayerInfo("blocks.0.norm.linear", "linear", Role.MODULATION, "blocks.0", (48, 8), True),
    LayerInfo("proj_out", "linear", Role.OUT_PROJECTION, None, (4, 8), True),
]
INT4 = WeightSettings(format="int4", granularity="group", group=8)
INT8 = WeightSettings(format="int8")
TOKEN = ActivationSettings(format="int8")


def formats(*rules: Rule) -> list[str]:
    return ["kept" if a.spec is None else a.spec.summary() for a in assign(LAYERS, INT4, TOKEN, rules)]


def test_without_rules_every_layer_has_the_stage_formats() -> None:
    assert formats() == ["int4 group 8 · int8 token"] * 4


def test_the_last_match_wins_and_rules_combine() -> None:
    found = formats(
        Rule(role="modulation", weights=INT8),
        Rule(match="*.linear", activations=ActivationSettings()),
        Rule(match="proj_out", keep=True),
        Rule(match="blocks.0.ff.*", keep=True),
        Rule(role="ff_in", weights=INT8),
    )
    assert found == ["int4 group 8 · int8 token", "int8 channel · int8 token", "int8 channel · float", "kept"]


def test_role_and_match_must_both_fit() -> None:
    assert formats(Rule(role="ff_in", match="blocks.0.*", keep=True)).count("kept") == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(match="*.to_w", keep=True), r"match `\*\.to_w` matches no layer \(`compress inspect` lists the layers"),
        (Rule(role="skip", keep=True), r"role `skip` matches no layer \(this model has the roles attention_q, ff_in"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(rule: Rule, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        assign(LAYERS, INT4, TOKEN, [Rule(role="ff_in", keep=True), rule])
    assert caught.value.path == ("rules", 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightSettings(format="int5"), "int5"),
        (lambda: WeightSettings(format="uint8"), "write `int8` with `symmetric: false`"),
        (lambda: WeightSettings(format="int4", granularity="group"), "give both or neither"),
        (lambda: WeightSettings(format="int4", granularity="group", group=12), "multiple of 8"),
        (lambda: WeightSettings(format="fp4_e2m1", symmetric=False), "no zero point"),
        (lambda: WeightSettings(format="mxfp4", group=64), "groups of 32 with e8m0 scales; leave out `granularity`"),
        (lambda: WeightSettings(format="nvfp4", granularity="channel"), "groups of 16 with e4m3 scales"),
        (lambda: WeightSettings(format="mxfp4", scale="float16"), "groups of 32 with e8m0 scales"),
        (lambda: WeightSettings(format="mxfp4", symmetric=False), "no zero point"),
        (lambda: WeightSettings(format="int4", granularity="group", group=32, scale="e8m0"), "no e8m0 scales"),
        (lambda: WeightSettings(format="int8", mode="folded"), "up to 6 bits, `int8` has 8"),
        (lambda: WeightSettings.model_validate({"format": ["mxfp4"]}), "valid string"),
        (lambda: ActivationSettings(format="nvfp4"), "`nvfp4` is a format of weights"),
        (lambda: ActivationSettings(format="int8", mode="static"), "static activations per token do not exist"),
        (lambda: ActivationSettings(format="int8", symmetric=False), "static int8 and int4"),
        (lambda: ActivationSettings(format="int8", timesteps="each"), "dynamic scales follow every input already"),
        (lambda: Rule(keep=True), "needs `role`, `match` or both"),
        (lambda: Rule(role="conv"), "needs `keep: true`"),
        (lambda: Rule(role="conv", keep=True, weights=INT8), "leaves no place"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_formats_with_blocks_of_their_own_need_only_their_name() -> None:
    for name, group, scale in (("mxfp4", 32, "e8m0"), ("nvfp4", 16, "e4m3")):
        assert WeightSettings(format=name).spec() == WeightSpec.natural(name)
        assert WeightSettings(format=name).spec() == WeightSpec(name, "group", group, True, scale)
        full = {"format": name, "granularity": "group", "group": group, "scale": scale, "symmetric": True}
        assert WeightSettings.model_validate(full) == WeightSettings(format=name)
        assert WeightSettings.model_validate(WeightSettings(format=name).model_dump()) == WeightSettings(format=name)
    assert WeightSettings(format="nf4").spec() == WeightSpec("nf4")


def test_the_mode_of_the_operator_goes_with_the_weights() -> None:
    folded = WeightSettings(format="nf4", mode="folded")
    specs = [a.spec for a in assign(LAYERS, INT4, TOKEN, [Rule(role="ff_in", weights=folded)])]
    assert [spec.mode for spec in specs if spec] == ["exact", "folded", "exact", "exact"]
    assert specs[1] is not None and specs[1].summary() == "nf4 channel folded · int8 token"


@pytest.mark.parametrize("activations", [ActivationSettings(), ActivationSettings(format="fp8_e4m3")])
def test_folding_needs_integer_activations(activations: ActivationSettings) -> None:
    rule = Rule(role="ff_in", weights=WeightSettings(format="nf4", mode="folded"), activations=activations)
    with pytest.raises(RecipeError, match=r"`blocks.0.ff.in` has `mode: folded` without integer activations"):
        assign(LAYERS, INT4, TOKEN, [rule])


def test_group_scales_are_float16_by_default() -> None:
    assert INT4.spec().scale_dtype == "float16"
    assert INT8.spec().scale_dtype == "float32"


STATIC = ActivationSettings(format="int8", granularity="tensor", mode="static", timesteps="each")


def test_timesteps_are_asked_for_once_and_only_where_each_has_a_scale() -> None:
    asked = []

    def timesteps() -> tuple[float, ...]:
        asked.append(True)
        return (1.0, 5.0)

    assign(LAYERS, INT8, TOKEN, [], timesteps)
    assert not asked
    found = assign(LAYERS, INT8, STATIC, [Rule(role="modulation", activations=TOKEN)], timesteps)
    assert len(asked) == 1
    assert [a.spec.activations.timesteps for a in found] == [(1.0, 5.0), (1.0, 5.0), (), (1.0, 5.0)]
    assert found[0].spec.summary() == "int8 channel · int8 tensor static x2 t"


SKIPS = [
    LayerInfo("up.conv1", "conv2d", Role.SKIP, "up", (8, 12, 3, 3), True, split=8),
    LayerInfo("up.conv_shortcut", "conv2d", Role.SKIP, "up", (8, 12, 1, 1), True, split=8),
    LayerInfo("skip_linear", "linear", Role.SKIP, None, (8, 16), True, split=8),
    LayerInfo("conv", "conv2d", Role.CONV, None, (8, 8, 1, 1), True),
]
UNKNOWN = LayerInfo("odd.conv_shortcut", "conv2d", Role.SKIP, "odd", (8, 12, 1, 1), True)


@pytest.mark.parametrize(
    ("split", "divided"),
    [("none", []), ("shortcut", [1, 2]), ("concatenation", [0, 1, 2])],
)
def test_layers_on_a_concatenation_are_divided(split, divided: list[int]) -> None:
    found = split_layers(assign(SKIPS, INT8, TOKEN, []), split, asked=True)
    assert [i for i, a in enumerate(found) if a.spec.split == 8] == divided
    assert all(a.spec.split is None for i, a in enumerate(found) if i not in divided)


def test_an_unknown_place_is_an_error_only_where_it_is_asked_for() -> None:
    layers = [*SKIPS, UNKNOWN]
    with pytest.raises(RecipeError, match=r"does not tell at which channel `odd\.conv_shortcut` divides"):
        split_layers(assign(layers, INT8, TOKEN, []), "shortcut", asked=True)
    found = split_layers(assign(layers, INT8, TOKEN, []), "shortcut", asked=False)
    assert [a.spec.split for a in found] == [None, 8, 8, None, None]
    kept = assign(layers, INT8, TOKEN, [Rule(match="odd.*", keep=True)])
    assert split_layers(kept, "shortcut", asked=True)[4].spec is None


def test_a_model_without_skips_cannot_be_asked_to_split() -> None:
    with pytest.raises(RecipeError, match="`split: shortcut` matches no layer"):
        split_layers(assign(LAYERS, INT8, TOKEN, []), "shortcut", asked=True)
    found = assign(LAYERS, INT8, TOKEN, [])
    assert split_layers(found, "concatenation", asked=False) == found
