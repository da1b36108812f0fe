"""Methods that learn from the model's own sampling, against nearest: same formats, ranges and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.tables.nearest import KEPT
from benchmarks.tables.table import Cell, Finding, Result, Results, Table, Verdict

EVERY_INPUT = "tfmq, every input"
"""Row of `tfmq` as its released code has it: scales per timestep for all inputs, not only in the time path."""
METHODS = ("nearest", "ptq4dm", "q_diffusion", "tfmq", EVERY_INPUT, "quest")
BITS = ("W8A8", "W4A8", "W4A4", "W3A8")
ORDER = {"W4A8": 0, "W8A8": 1, "W4A4": 2, "W3A8": 3}
"""What is measured first; ablations come second, with W8A8."""
SEEDS = {"digits-dit": (0, 1, 2), "digits-unet": (0,)}
MODELS = {"digits-dit": "zoo://digits-dit", "digits-unet": "zoo://digits-unet"}
LEARNERS = ("q_diffusion", "tfmq")
"""Which the table states to remove most of nearest's error at W4A8."""
REMOVED = 0.6

RANGES = {"kind": "mse", "norm": 2.4}
OBSERVER = {"kind": "mse", "norm": 2.4}
TOKENWISE: Mapping[str, tuple[str, ...]] = {"digits-dit": ("transformer_blocks.0.ff.net.0.proj",), "digits-unet": ()}
"""Layers whose inputs keep dynamic scales per token: one static scale there costs digits-dit six times all others."""
LEARNING: Mapping[str, Mapping[str, Any]] = {
    "digits-dit": {"iterations": 100, "batch_size": 32, "learning_rate": 0.03, "inputs": 256},
    "digits-unet": {"iterations": 400, "batch_size": 16, "learning_rate": 0.02, "inputs": 512},
}
"""Steps of the learned methods on the bundled models, also in their recipes; the papers have 20,000, on a GPU."""
EXTRA: Mapping[str, Mapping[str, Any]] = {
    "tfmq": {"temporal_iterations": 1000},
    EVERY_INPUT: {"temporal_iterations": 1000, "finite_set": "all"},
    "quest": {
        "backward_batch": 8,
        "time": {"epochs": 2, "samples": 8, "step_samples": 8, "learning_rate": 1e-4, "scale_learning_rate": 1e-4},
        "critical": {"epochs": 4, "samples": 8, "step_samples": 8, "learning_rate": 3e-4, "scale_learning_rate": 1e-2},
    },
}
"""More of single methods: steps of the time path alone, which are cheap, and of fine-tuning after rounding."""
EIGHT_BITS: Mapping[str, Any] = {"time": {"scale_learning_rate": 1e-5}, "critical": {"scale_learning_rate": 5e-4}}
"""Of quest where inputs have 8 bits: their scales are 17 times smaller than at 4, and so are the steps to take."""
SLOWER: Mapping[str, Mapping[str, Any]] = {
    "digits-dit": {"time": {"learning_rate": 1e-5}, "critical": {"learning_rate": 1e-5}}
}
"""Of quest on a transformer: the paper's rates for weights. At the U-Net's, W8A8 ends 40 times worse than it began."""

TIMESTEPS: Mapping[str, Mapping[str, Any]] = {
    "one timestep": {"samples": 320, "timesteps": {"kind": "single"}},
    "random subset": {"samples": 64, "timesteps": {"kind": "random", "count": 5}},
    "uniform steps": {"samples": 64, "timesteps": {"kind": "uniform", "count": 5}},
}
"""Calibration sets of 320 model calls (and as many of the unconditional half)."""
SPLIT = {"digits-dit": "none", "digits-unet": "shortcut"}
"""Of every method, so that they differ in what they learn alone."""
INPUTS: Mapping[str, tuple[str, ...]] = {"digits-dit": ("static", "per token"), "digits-unet": ("per token",)}
"""Other ways to scale inputs at W4A8: every one static, or every one per token (image)."""
SPLITS = ("none", "shortcut", "concatenation")
ATTENTION: Mapping[str, Mapping[str, Any]] = {
    "attention in float": {},
    "attention at 8 bits": {"attention": {"bits": 8, "softmax_bits": 8}},
}

SECTIONS = {
    **MODELS,
    **{f"{model}, inputs": source for model, source in MODELS.items()},
    **{f"{model}, timesteps": source for model, source in MODELS.items()},
    "digits-unet, split": MODELS["digits-unet"],
    **{f"{model}, attention": source for model, source in MODELS.items()},
}

_NOTE = """\
Every method has asymmetric weights with one scale a channel, 1x1 shortcuts on a skip concatenation as two operators,
and one static asymmetric scale for each layer's input (for each timestep: of `tfmq` in the time path, of `tfmq, every
input` everywhere, of `quest` everywhere but in the time path); the first and the last layer stay in floating point, and
one input of digits-dit, which alone costs more than all others together, has dynamic scales per token. Ranges are
searched alike: least error to the power of 2.4, of weights and of inputs. `ptq4dm` alone has a search and a calibration
set of its own, which are the method. The others calibrate on all 20 steps of 64 images. Learned methods take the few
steps that `LEARNING` in benchmarks/tables/calibrated.py gives them, less than a hundredth of the papers'. These, and
the dynamic input, were chosen on other noise than this table is measured on.

Sections on inputs (W4A8): all of them static, or all dynamic. Sections on timesteps (W4A8): input scales, and what
q_diffusion learns from, at one timestep, at 5 drawn once, at 5 evenly spread; 320 model calls in each. Section on
splits: nearest, layers that read a skip concatenation as one operator or two. Sections on attention: nearest with W8A8,
attention's products in floating point or 8-bit integers."""


def method_settings(kind: str, model: str, bits: str = "W4A4") -> dict[str, Any]:
    """The `method:` of a recipe for a bundled model; only quest's depends on the bits."""
    if kind == "nearest":
        return {"kind": kind, "ranges": RANGES}
    if kind == "ptq4dm":
        return {"kind": kind}
    extra = dict(EXTRA.get(kind, {}))
    if kind == "quest":
        for changes in (EIGHT_BITS if bits[3] == "8" else {}, SLOWER.get(model, {})):
            extra |= {part: {**extra[part], **rates} for part, rates in changes.items()}
    return {"kind": kind.partition(",")[0], "ranges": RANGES, **LEARNING[model], **extra}


def stage(kind: str, model: str, bits: str, **settings: Any) -> dict[str, Any]:
    """The quantize stage of a method at `bits`, `W4A8` for one."""
    observer = {"kind": "ema_mse"} if kind == "ptq4dm" else OBSERVER
    return {
        "kind": "quantize",
        "method": method_settings(kind, model, bits),
        "weights": {"format": f"int{bits[1]}", "granularity": "channel", "symmetric": False},
        "activations": {
            "format": f"int{bits[3]}",
            "granularity": "tensor",
            "mode": "static",
            "symmetric": False,
            "observer": observer,
        },
        "split": SPLIT[model],
        "rules": [*KEPT, *({"match": name, "activations": {"format": f"int{bits[3]}"}} for name in TOKENWISE[model])],
        **settings,
    }


def input_settings(inputs: str) -> dict[str, Any]:
    """What the stage has for all inputs but those of the first and the last layer."""
    if inputs == "per token":
        return {"activations": {"format": "int8"}, "rules": KEPT}
    return {"rules": KEPT}


def calibration_of(kind: str) -> dict[str, Any]:
    """What a method's own calibration set is, where it has one."""
    return {"timesteps": {"kind": "normal"}} if kind == "ptq4dm" else {}


def _cells() -> Iterator[Cell]:
    for section in MODELS:
        for kind in METHODS:
            for bits in BITS:
                headline = bits == "W8A8" or (bits == "W4A8" and kind in ("nearest", *LEARNERS))
                for seed in SEEDS[section]:
                    priority = ORDER[bits] + (2 if seed else 0)
                    yield Cell(
                        section,
                        kind,
                        bits,
                        (stage(kind, section, bits),),
                        headline and seed == 0,
                        calibration_of(kind),
                        seed,
                        priority,
                    )
    yield from _ablations()


def _ablations() -> Iterator[Cell]:
    for section in SECTIONS:
        model, _, part = section.partition(", ")
        if part == "timesteps":
            for kind in ("nearest", "q_diffusion"):
                for column, calibration in TIMESTEPS.items():
                    stages = (stage(kind, model, "W4A8"),)
                    yield Cell(section, kind, column, stages, calibration=calibration, priority=2)
        elif part == "inputs":
            for kind in ("nearest", "q_diffusion"):
                for inputs in INPUTS[model]:
                    yield Cell(
                        section, kind, inputs, (stage(kind, model, "W4A8", **input_settings(inputs)),), priority=1
                    )
        elif part == "split":
            for split in SPLITS:
                for bits in ("W4A8", "W8A8"):
                    yield Cell(section, split, bits, (stage("nearest", model, bits, split=split),), priority=1)
        elif part == "attention":
            for row, settings in ATTENTION.items():
                yield Cell(section, row, "W8A8", (stage("nearest", model, "W8A8", **settings),), priority=1)


def findings(results: Results) -> list[Finding]:
    """What the papers claim, as far as the cells at hand can tell."""
    found: list[Finding | None] = []
    for section in MODELS:
        found += [_removes(results, section, kind) for kind in LEARNERS]
        for inputs in INPUTS[section]:
            found += [_removes(results, f"{section}, inputs", "q_diffusion", inputs)]
        found += [_removes_added(results, section, kind) for kind in LEARNERS]
        found += [_least_temporal_error(results, section, bits) for bits in BITS]
        found += [_identity(results, section, bits) for bits in BITS]
        found += [_least(results, section, "W4A4", "quest")]
        for kind in ("nearest", "q_diffusion"):
            found += [_below(results, (f"{section}, timesteps", kind), "uniform steps", "one timestep")]
    for bits in ("W4A8", "W8A8"):
        for split in SPLITS[1:]:
            found += _split_helps(results, split, bits)
    return [finding for finding in found if finding is not None]


def _removes(results: Results, section: str, kind: str, column: str = "W4A8") -> Finding | None:
    """At least 60 % of nearest's noise error at W4A8, on the mean over the seeds."""
    base, learned = results.get((section, "nearest", column)), results.get((section, kind, column))
    if base is None or learned is None:
        return None
    share = 1 - learned.mean("noise_error") / base.mean("noise_error")
    evidence = f"{100 * share:.1f} %: {base.mean('noise_error'):.3g} to {learned.mean('noise_error'):.3g}"
    where = section if column == "W4A8" else f"{section} {column}"
    statement = f"{where}: {kind} removes at least {100 * REMOVED:.0f} % of nearest's noise error at W4A8"
    return Finding(statement, "yes" if share >= REMOVED else "no", evidence)


def _removes_added(results: Results, section: str, kind: str) -> Finding | None:
    """The same of what 4-bit weights add to each method's own W8A8: static inputs alone may cost more than weights."""
    places = [(section, name, bits) for name in ("nearest", kind) for bits in ("W4A8", "W8A8")]
    if any(place not in results for place in places):
        return None
    few, many, learned_few, learned_many = (results[place].mean("noise_error") for place in places)
    if few <= many:
        return None
    share = 1 - (learned_few - learned_many) / (few - many)
    evidence = f"{100 * share:.1f} %: nearest {many:.3g} to {few:.3g}, {kind} {learned_many:.3g} to {learned_few:.3g}"
    statement = f"{section}: {kind} removes at least {100 * REMOVED:.0f} % of what 4-bit weights add to W8A8"
    return Finding(statement, "yes" if share >= REMOVED else "no", evidence)


def _least_temporal_error(results: Results, section: str, bits: str) -> Finding | None:
    errors = {
        kind: results[section, kind, bits].mean("temporal_error")
        for kind in METHODS
        if (section, kind, bits) in results and results[section, kind, bits].find("temporal_error") is not None
    }
    if "tfmq" not in errors or len(errors) < 2:
        return None
    evidence = ", ".join(f"{kind} {value:.3g}" for kind, value in sorted(errors.items(), key=lambda item: item[1]))
    holds: Verdict = "yes" if min(errors, key=lambda kind: errors[kind]).startswith("tfmq") else "no"
    return Finding(f"{section}, {bits}: tfmq has the least temporal error", holds, evidence)


def _identity(results: Results, section: str, bits: str) -> Finding | None:
    """TFMQ-DM's own criterion: an embedding resembles that of no other timestep."""
    shares = {
        kind: results[section, kind, bits].mean("temporal_error", of="nearest_neighbour_identity", within="0")
        for kind in METHODS
        if (section, kind, bits) in results and results[section, kind, bits].find("temporal_error") is not None
    }
    if "tfmq" not in shares:
        return None
    evidence = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items())
    statement = f"{section}, {bits}: with tfmq every embedding stays nearest to its own timestep"
    return Finding(statement, "yes" if shares["tfmq"] == 1 else "no", evidence)


def _least(results: Results, section: str, bits: str, kind: str) -> Finding | None:
    """Whether a method has the least noise error of a column, judged by the intervals of seed 0."""
    there = {name: results[section, name, bits] for name in METHODS if (section, name, bits) in results}
    if kind not in there or len(there) < 2:
        return None
    others = {name: result for name, result in there.items() if name != kind}
    best = min(others, key=lambda name: others[name].mean("noise_error"))
    ordered = sorted(there.items(), key=lambda item: item[1].mean("noise_error"))
    evidence = ", ".join(f"{name} {result.mean('noise_error'):.3g}" for name, result in ordered)
    statement = f"{section}, {bits}: {kind} has the least noise error"
    return Finding(statement, _lower(there[kind], others[best]), evidence)


def _below(results: Results, place: tuple[str, str], lower: str, higher: str) -> Finding | None:
    """Whether one column of a row has less noise error than another."""
    a, b = results.get((*place, lower)), results.get((*place, higher))
    if a is None or b is None:
        return None
    evidence = f"{a.value('noise_error'):.3g} against {b.value('noise_error'):.3g}"
    return Finding(f"{', '.join(place)}: less noise error by {lower} than by {higher}", _lower(a, b), evidence)


def _split_helps(results: Results, split: str, bits: str) -> list[Finding]:
    """On the layers themselves, and on the predicted noise."""
    whole, divided = (results.get(("digits-unet, split", row, bits)) for row in ("none", split))
    if whole is None or divided is None:
        return []
    before, after = whole.find("concatenation_error"), divided.find("concatenation_error")
    found = []
    if before is not None and after is not None:
        holds: Verdict = "yes" if after.value < before.value else "no"
        statement = f"digits-unet, {bits}: `split: {split}` lowers the error of the layers on a concatenation"
        found.append(Finding(statement, holds, f"{after.value:.3g} against {before.value:.3g}, relative"))
    evidence = f"{divided.value('noise_error'):.3g} against {whole.value('noise_error'):.3g}"
    statement = f"digits-unet, {bits}: `split: {split}` lowers the noise error"
    return [*found, Finding(statement, _lower(divided, whole), evidence)]


def _lower(a: Result, b: Result) -> Verdict:
    """Whether `a` has less noise error than `b`; `within intervals` when their intervals overlap."""
    first, second = a.find("noise_error"), b.find("noise_error")
    assert first is not None and second is not None
    if first.spread["ci95_high"] < second.spread["ci95_low"]:
        return "yes"
    return "no" if second.spread["ci95_high"] < first.spread["ci95_low"] else "within intervals"


TABLE = Table(
    name="calibrated",
    title="Methods that calibrate",
    note=_NOTE,
    sections=SECTIONS,
    cells=tuple(_cells()),
    findings=findings,
    baseline="nearest",
    within_noise=("W8A8",),
    band_column="W4A8",
    headlines_after=1,
)
