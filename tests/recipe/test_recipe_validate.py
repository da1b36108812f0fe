"""Every kind of mistake in a recipe, and the sentence it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, field_validator
from recipe_standins import Layer, Magnitude, Mixed, Quantize, Standin, Tinyfusion, Uniform, changed

from compress.config import Config
from compress.errors import FormatError, RecipeError
from compress.recipe.source import parse
from compress.recipe.validate import validate


def complaint(text: str, model: type[Config] = Standin) -> str:
    with pytest.raises(RecipeError) as caught:
        validate(model, parse(text))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_stand_in_of_the_normative_recipe_is_valid() -> None:
    recipe = validate(Standin, parse(changed()))
    prune, quantize = recipe.stages
    assert prune.method == Tinyfusion(keep=0.5)
    assert isinstance(quantize, Quantize)
    assert [rule.role for rule in quantize.rules] == [Layer.MODULATION, None]
    assert [type(gate).__name__ for gate in recipe.gates] == ["Ceiling", "Floor"]


def test_lists_become_tuples_and_text_becomes_paths_and_integers_numbers() -> None:
    text = changed(l3="output: out/here\nsize: [3, 5]", l16="    weights: {budget: {average_bits: 3}, formats: [int3]}")
    recipe = validate(Standin, parse(text))
    assert (recipe.output, recipe.size) == (Path("out/here"), (3, 5))
    quantize = recipe.stages[1]
    assert isinstance(quantize, Quantize)
    weights = quantize.weights
    assert isinstance(weights, Mixed)
    assert weights.formats == ("int3",)
    assert isinstance(weights.budget.average_bits, float)


UNKNOWN_KEYS = [
    ({"l3": "sede: 0"}, "3: unknown key `sede`; did you mean `seed`?"),
    ({"l3": "SEED: 0"}, "3: unknown key `SEED`; did you mean `seed`?"),
    ({"l11": "stagess:"}, "11: unknown key `stagess`; did you mean `stages`?"),
    ({"l3": "seed: 0\nsede: 1"}, "4: unknown key `sede`; did you mean `seed`?"),
    ({"l4": "modle:"}, "4: unknown key `modle`; did you mean `model`?"),
    ({"l5": "  sorce: zoo://x"}, "5: model: unknown key `sorce`; did you mean `source`?"),
    ({"l6": "  colour: red"}, "6: model: unknown key `colour`; the keys here are `source`, `dtype`"),
    (
        {"l13": "    method: {kind: tinyfusion, iteratons: 5}"},
        "13: stages.0.method: unknown key `iteratons`; did you mean `iterations`?",
    ),
    (
        {"l13": "    method:\n      kind: magnitude\n      iterations: 5"},
        "15: stages.0.method: unknown key `iterations`; the keys here are `kind`, `keep`",
    ),
    ({"l8": "  sampler:\n    stepz: 5"}, "9: calibration.sampler: unknown key `stepz`; did you mean `steps`?"),
    (
        {"l10": "  timesteps: {kind: bands, edge: [1]}"},
        "10: calibration.timesteps: unknown key `edge`; did you mean `edges`?",
    ),
    (
        {"l16": "    weights: {format: int4, granularty: channel}"},
        "16: stages.1.weights: unknown key `granularty`; did you mean `granularity`?",
    ),
    (
        {"l16": "    weights: {budget: {bits: 3}, formats: [int3]}"},
        "16: stages.1.weights.budget: unknown key `bits`; did you mean `average_bits`?",
    ),
    (
        {"l16": "    weights: {budgt: {average_bits: 3}, formats: [int3]}"},
        "16: stages.1.weights: unknown key `budgt`; did you mean `budget`?",
    ),
    ({"l21": "        kepp: true"}, "21: stages.1.rules.1: unknown key `kepp`; did you mean `keep`?"),
    ({"l23": "  - {metrc: x, max: 1}"}, "23: gates.0: unknown key `metrc`; did you mean `metric`?"),
    (
        {"l12": "  - kind: prune\n    keep: 0.5"},
        "13: stages.0: unknown key `keep`; it belongs under `method`",
    ),
    ({"l9": "  steps: 5"}, "9: calibration: unknown key `steps`; it belongs under `sampler`"),
]
KINDS = [
    (
        {"l13": "    method: {kind: tinyfusio}"},
        "13: stages.0.method: unknown kind `tinyfusio`; did you mean `tinyfusion`? (known: magnitude, tinyfusion)",
    ),
    ({"l12": "  - kind: bake"}, "12: stages.0: unknown kind `bake` (known: prune, quantize)"),
    ({"l12": "  - component: denoiser"}, "12: stages.0: missing key `kind` (known: prune, quantize)"),
    ({"l12": "  - kidn: prune"}, "12: stages.0: unknown key `kidn`; did you mean `kind`?"),
    ({"l12": "  - kind:"}, "12: stages.0.kind: expected `prune` or `quantize`, found nothing"),
    ({"l12": "  - kind: 3"}, "12: stages.0.kind: expected `prune` or `quantize`, found 3 (integer)"),
    (
        {"l13": "    method: tinyfusion"},
        "13: stages.0.method: expected mapping, found 'tinyfusion' (text); write `{kind: tinyfusion}`",
    ),
    ({"l13": "    method: [tinyfusion]"}, "13: stages.0.method: expected mapping, found a list"),
    (
        {"l15": "    method: {kind: neares}"},
        "15: stages.1.method: unknown kind `neares`; did you mean `nearest`? (known: nearest)",
    ),
    (
        {"l15": "    method: {kind: gptq, damping: 0.01}"},
        "15: stages.1.method: unknown kind `gptq` (known: nearest)",
    ),
    (
        {"l15": "    method: nearest"},
        "15: stages.1.method: expected mapping, found 'nearest' (text); write `{kind: nearest}`",
    ),
]
TYPES = [
    ({"l3": "seed: abc"}, "3: seed: expected integer, found 'abc' (text)"),
    ({"l3": "seed: '3'"}, "3: seed: expected integer, found '3' (text); remove the quotes"),
    ({"l3": "seed: 3.5"}, "3: seed: expected integer, found 3.5 (number)"),
    ({"l3": "seed: 1e3"}, "3: seed: expected integer, found 1000.0 (number); write 1000"),
    ({"l3": "seed: true"}, "3: seed: expected integer, found true (true or false)"),
    ({"l3": "seed:"}, "3: seed: expected integer, found nothing"),
    ({"l3": "seed: [1]"}, "3: seed: expected integer, found a list"),
    ({"l3": "seed: {a: 1}"}, "3: seed: expected integer, found a mapping"),
    ({"l3": "seed: " + "x" * 60}, f"3: seed: expected integer, found '{'x' * 39}…' (text)"),
    ({"l2": "name: 12"}, "2: name: expected text, found 12 (integer); put it in quotes"),
    ({"l2": "name: true"}, "2: name: expected text, found true (true or false); put it in quotes"),
    ({"l3": "output: 5"}, "3: output: expected text, found 5 (integer); put it in quotes"),
    ({"l4": "model: zoo://x", "l5": "", "l6": ""}, "4: model: expected mapping, found 'zoo://x' (text)"),
    ({"l9": "  samples: 1.0"}, "9: calibration.samples: expected integer, found 1.0 (number); write 1"),
    (
        {"l8": "  sampler: {guidance_scale: high}"},
        "8: calibration.sampler.guidance_scale: expected number, found 'high' (text)",
    ),
    (
        {"l10": "  timesteps: {kind: bands, edges: 0.5}"},
        "10: calibration.timesteps.edges: expected list, found 0.5 (number); put it in a list, `[…]` or `- …`",
    ),
    (
        {"l10": "  timesteps: {kind: bands, edges: [0.5, x]}"},
        "10: calibration.timesteps.edges.1: expected number, found 'x' (text)",
    ),
    (
        {"l21": "        keep: yes"},
        "21: stages.1.rules.1.keep: expected true or false, found 'yes' (text); write true",
    ),
    (
        {"l21": "        keep: Off"},
        "21: stages.1.rules.1.keep: expected true or false, found 'Off' (text); write false",
    ),
    ({"l21": "        keep: 1"}, "21: stages.1.rules.1.keep: expected true or false, found 1 (integer)"),
    ({"l3": "notes: {a: x}"}, "3: notes.a: expected integer, found 'x' (text)"),
    ({"l3": "notes: [1]"}, "3: notes: expected mapping, found a list"),
    ({"l16": "    weights: int4"}, "16: stages.1.weights: expected mapping, found 'int4' (text)"),
    ({"l24": "  - psnr"}, "24: gates.1: expected mapping, found 'psnr' (text)"),
]
CHOICES = [
    (
        {"l6": "  dtype: flaot16"},
        "6: model.dtype: unknown value `flaot16`; did you mean `float16`? (known: float32, float16)",
    ),
    ({"l6": "  dtype: 16"}, "6: model.dtype: expected `float32` or `float16`, found 16 (integer)"),
    ({"l1": "version: 2"}, "1: version: expected 1, found 2 (integer)"),
    ({"l1": "version: '1'"}, "1: version: expected 1, found '1' (text)"),
    (
        {"l16": "    weights: {format: int4, granularity: chanel}"},
        "16: stages.1.weights.granularity: unknown value `chanel`; did you mean `channel`? "
        "(known: tensor, channel, group)",
    ),
    (
        {"l19": "      - {role: modulatoin}"},
        "19: stages.1.rules.0.role: unknown value `modulatoin`; did you mean `modulation`? (known: modulation, conv)",
    ),
    (
        {"l17": "    threads: aut"},
        "17: stages.1.threads: expected integer or `auto`, found 'aut' (text); did you mean `auto`?",
    ),
    ({"l17": "    threads: 2.5"}, "17: stages.1.threads: expected integer or `auto`, found 2.5 (number)"),
    ({"l17": "    threads: [1]"}, "17: stages.1.threads: expected integer or `auto`, found a list"),
    ({"l17": "    threads: {}"}, "17: stages.1.threads: expected integer or `auto`, found a mapping"),
]
LIMITS = [
    ({"l3": "seed: -1"}, "3: seed: must be at least 0, found -1"),
    ({"l2": "name: ''"}, "2: name: must have at least 1 character, found 0"),
    ({"l8": "  sampler: {steps: 1001}"}, "8: calibration.sampler.steps: must be at most 1000, found 1001"),
    (
        {"l10": "  timesteps: {kind: uniform, count: 0}"},
        "10: calibration.timesteps.count: must be greater than 0, found 0",
    ),
    (
        {"l10": "  timesteps: {kind: bands, edges: []}"},
        "10: calibration.timesteps.edges: must have at least 1 item, found 0",
    ),
    ({"l13": "    method: {kind: magnitude, keep: 1.5}"}, "13: stages.0.method.keep: must be at most 1, found 1.5"),
    (
        {"l16": "    weights: {format: int4, granularity: group, group: 31}"},
        "16: stages.1.weights.group: must be a multiple of 8, found 31",
    ),
    (
        {"l20": '      - match: "a b"'},
        "20: stages.1.rules.1.match: must match the pattern `^\\S+$`, found 'a b' (text)",
    ),
    (
        {"l8": "  sampler: {guidance_scale: .inf}"},
        "8: calibration.sampler.guidance_scale: must be finite, found inf (number)",
    ),
    (
        {"l8": "  sampler: {guidance_scale: 1e999}"},
        "8: calibration.sampler.guidance_scale: must be finite, found inf (number)",
    ),
    ({"l3": "size: [1]"}, "3: size: item 1 is missing; 2 items needed"),
    ({"l3": "size: [1, 2, 3]"}, "3: size: must have at most 2 items, found 3"),
]
VALIDATORS = [
    ({"l10": "  timesteps: {kind: bands, edges: [2, 1]}"}, "10: calibration.timesteps.edges: band edges must ascend"),
    (
        {"l16": "    weights: {format: int4, group: 64}"},
        "16: stages.1.weights: `group` goes with `granularity: group`; give both or neither",
    ),
    (
        {"l22": "  - kind: prune\n    method: {kind: magnitude}\ngates:"},
        "22: stages.2: `prune` must come before `quantize`",
    ),
]
MISSING = [
    ({"l2": ""}, "1: missing key `name`"),
    ({"l5": ""}, "4: model: missing key `source`"),
    ({"l13": ""}, "12: stages.0: missing key `method`"),
    ({"l16": ""}, "14: stages.1: missing key `weights`"),
    ({"l23": "  - {max: 1}"}, "23: gates.0: missing key `metric`"),
]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [*UNKNOWN_KEYS, *KINDS, *TYPES, *CHOICES, *LIMITS, *VALIDATORS, *MISSING],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else " ".join(value.values()).strip()[:40],
)
def test_one_mistake_gives_exactly_this_sentence(lines: dict[str, str], sentence: str) -> None:
    assert complaint(changed(**lines)) == f"recipe.yaml:{sentence}"


def test_several_mistakes_are_told_in_the_order_of_the_file() -> None:
    text = changed(l3="sede: x", l8="  sampler: {steps: x, guidance_scale: y}", l17="    threads: 1.5", l24="  - {}")
    assert complaint(text).splitlines() == [
        "recipe.yaml:3: unknown key `sede`; did you mean `seed`?",
        "recipe.yaml:8: calibration.sampler.steps: expected integer, found 'x' (text)",
        "recipe.yaml:8: calibration.sampler.guidance_scale: expected number, found 'y' (text)",
        "recipe.yaml:17: stages.1.threads: expected integer or `auto`, found 1.5 (number)",
        "recipe.yaml:24: gates.1: missing key `metric`",
        "recipe.yaml:24: gates.1: missing key `min`",
    ]


def test_a_single_mistake_keeps_its_place_apart_from_its_sentence() -> None:
    with pytest.raises(RecipeError) as caught:
        validate(Standin, parse(changed(l3="seed: x")))
    assert (caught.value.where, caught.value.message) == ("recipe.yaml:3", "seed: expected integer, found 'x' (text)")


def test_a_key_merged_from_an_anchor_is_reported_where_it_is_written() -> None:
    text = changed(l8="  sampler: &s\n    kind: ddim", l10="  timesteps:\n    <<: *s\n    kind: uniform\n    count: 3")
    assert validate(Standin, parse(text)).calibration.timesteps == Uniform(count=3)
    text = text.replace("kind: ddim", "kind: ddim\n    steps: 0", 1)
    assert complaint(text).splitlines() == [
        "recipe.yaml:10: calibration.sampler.steps: must be at least 1, found 0",
        "recipe.yaml:10: calibration.timesteps: unknown key `steps`; the keys here are `kind`, `count`",
    ]


class Deeper(Config):
    value: Magnitude | tuple[int, ...] | dict[str, float] = Field(description="Branches of every shape.")
    by_number: dict[int, Magnitude] = Field({}, description="Keys that are not text.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("value: [1, x]", "value.1: expected integer, found 'x' (text)"),
        ("value: {kind: magnitude, kep: 1}", "value: unknown key `kep`; did you mean `keep`?"),
        ("value: x", "value: expected mapping or list, found 'x' (text)"),
        ("{value: [1], by_number: {a: {}}}", "by_number.a: expected integer, found 'a' (text)"),
        ("{value: [1], by_number: {2: {keep: 0}}}", "by_number.2.keep: must be greater than 0, found 0"),
    ],
)
def test_unions_of_a_class_a_list_and_a_mapping(text: str, sentence: str) -> None:
    assert complaint(text, Deeper) == f"recipe.yaml:1: {sentence}"


def _size(value: object) -> str | None:
    return "small" if isinstance(value, int) and value < 5 else "large" if isinstance(value, str) else None


class Sized(Config):
    size: Annotated[Annotated[int, Tag("small")] | Annotated[float, Tag("big")], Discriminator(_size)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("size: 7", "size: fits none of the forms it may have, found 7 (integer)"),
        ("size: [1]", "size: fits none of the forms it may have, found a list"),
        ("size: x", "size: fits none of the forms it may have, found 'x' (text)"),
    ],
)
def test_a_union_told_apart_by_a_function(text: str, sentence: str) -> None:
    assert complaint(text, Sized) == f"recipe.yaml:1: {sentence}"


def test_a_misspelling_hides_the_missing_key_but_never_another_mistake() -> None:
    text = changed(l3="seed: x\nsede: 1", l8="  sampler: {steps: y}\n  steps: 4")
    assert complaint(text).splitlines() == [
        "recipe.yaml:3: seed: expected integer, found 'x' (text)",
        "recipe.yaml:4: unknown key `sede`; did you mean `seed`?",
        "recipe.yaml:9: calibration.sampler.steps: expected integer, found 'y' (text)",
        "recipe.yaml:10: calibration: unknown key `steps`; it belongs under `sampler`",
    ]


class One(Config):
    """Its kind has the name of one of its keys: the tag in pydantic's path must not be taken for that key."""

    kind: Literal["method"] = "method"
    method: Magnitude = Magnitude()
    size: Magnitude = Magnitude()


class Two(Config):
    kind: Literal["size"] = "size"


class Both(Config):
    entry: Annotated[One | Two, Field(discriminator="kind")]


def test_a_tag_with_the_name_of_a_key_is_not_taken_for_the_key() -> None:
    text = "entry:\n  kind: method\n  method: {keep: 1}\n  size:\n    keep: 7"
    assert complaint(text, Both) == "recipe.yaml:5: entry.size.keep: must be at most 1, found 7"


def test_our_own_error_in_a_validator_names_the_file() -> None:
    class Strict(Config):
        format: str

        @field_validator("format")
        @classmethod
        def _known(cls, value: str) -> str:
            raise FormatError(f"unknown format `{value}`", hint="see `compress formats`")

    assert complaint("format: int5", Strict) == "recipe.yaml: unknown format `int5` (see `compress formats`)"


def test_a_message_that_begins_like_a_path_but_is_none_stays_as_it_is() -> None:
    class Strict(Config):
        format: str

        @field_validator("format")
        @classmethod
        def _known(cls, value: str) -> str:
            raise ValueError("remedy: choose another")

    assert complaint("format: int5", Strict) == "recipe.yaml:1: format: remedy: choose another"
