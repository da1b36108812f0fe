"""Published model sizes against the exact bytes of our plans: `python -m benchmarks.published_sizes`.

The papers print megabytes (of 2^20 bytes) and no rule. Their numbers fit fp32 * b / 32 + constant, the constant
being the same at every width. Everything here follows from public configurations; no weights are read. It also checks
the papers' bit operations, MACs * weight bits * activation bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from compress.checkpoint.accounting import file_bytes, planned_tensors
from compress.evaluate.size import tensor_class
from compress.files import write_text_atomically
from compress.models.adapter import Adapter
from compress.models.inputs import CLIP_TOKENS
from compress.models.source import open_adapter, resolve
from compress.quantize.modules import swap_layers
from compress.quantize.rules import assign
from compress.quantize.settings import ActivationSettings, WeightSettings
from compress.recipe.model import LoadedRecipe, Recipe
from compress.recipe.plan import Plan, make_plan
from compress.recipe.source import Source
from compress.report.markdown import table

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
MIB = 2**20
BITS = (8, 4)


@dataclass(frozen=True)
class Published:
    """What papers print of one model.

    Attributes:
        config: folder of its configuration in recipes/configs.
        fp32: MiB of the full-precision denoiser, None where no table has it.
        sizes: MiB by weight bits.
        constant: MiB beyond fp32 * b / 32 where only that is known.
        symmetric: whether the runs behind the sizes had symmetric activations (QuEST's settings).
        groups: calibrated timesteps.
        gmacs, tbops: of one forward, and at W8A8.
    """

    title: str
    config: str
    fp32: float | None = None
    sizes: Mapping[int, float] | None = None
    constant: float | None = None
    symmetric: bool = False
    groups: int = 20
    gmacs: float | None = None
    tbops: float | None = None


SOURCE = "Wang et al. 2025, QuEST, tables of sizes (Q-Diffusion's and TFMQ-DM's rows among them)"
MODELS = (
    Published("Stable Diffusion 1.4", "sd-1.4", 3279, {8: 949, 4: 539}, groups=25),
    Published("LDM-4, LSUN-Bedrooms", "ldm-4-lsun-bedrooms", 1045.6, {8: 279.1, 4: 148.4}, symmetric=True),
    Published("LDM-8, LSUN-Churches", "ldm-8-lsun-churches", 1125.4, {8: 330.6, 4: 189.9}),
    Published("LDM-4, ImageNet", "ldm-4-imagenet", constant=46.3, symmetric=True, gmacs=99.8, tbops=6.39),
)


_CONSTANT = """\
`constant` is what the published sizes have beyond fp32 x b/32: the same at W8 and W4, to their rounding. So nothing in
it depends on the weights' bits. What is known of it: it follows the number of output channels (`floats each`), not that
of parameters, and the two runs with asymmetric inputs have 2.2 times as much a channel as the two with symmetric ones.
No count that we tried (tables per channel, per timestep, layers kept in fp32, attention maps) gives all four numbers.
The fp32 sizes of both LSUN models are 0.2 above ours, as the container of a checkpoint would be."""

_UNEXPLAINED = """\
`unexplained` is the constant less what a checkpoint of that kind must hold: fp32 scales and zero points of every output
channel, biases and norms kept in fp32 (beyond the share that the formula gives them), one step (and zero point) of
every layer's input and calibrated timestep. `ours` is the exact size of the file that we write, every layer quantized,
asymmetric weights per channel and static asymmetric inputs; the same as `compress check` prints. Of LDM-4 on ImageNet
only the constant is known to us: what stands as published is our fp32 size in the formula, plus that constant."""


class Counts(NamedTuple):
    """Numbers in a denoiser, by what quantization does to them.

    `channels` are output channels of layers; a tensor-wise activation has one step a layer.
    """

    parameters: int
    weights: int
    channels: int
    layers: int

    @property
    def unquantized(self) -> int:
        """Biases and norms."""
        return self.parameters - self.weights


class Row(NamedTuple):
    """One model at one width, in MiB. `constant` is what the published size has beyond fp32 * b / 32."""

    model: str
    bits: int
    published: float
    formula: float
    constant: float
    ours: float
    ours_by_class: dict[str, float]
    explained: dict[str, float]

    @property
    def unexplained(self) -> float:
        return self.constant - sum(self.explained.values())


def plan_of(model: Published, bits: int) -> Plan:
    """What `compress check` plans where every layer has `bits`-bit weights and a static 8-bit input."""
    data = recipe_data(model, bits)
    return make_plan(LoadedRecipe(Recipe.model_validate(data), Source(data, {}, ROOT / "recipes" / "x.yaml", "")))


def recipe_data(model: Published, bits: int) -> dict[str, Any]:
    """The published setting as a recipe: asymmetric weights per channel, asymmetric static inputs, no exceptions."""
    prompts = {"kind": "prompts", "path": "../calibration/scenes.txt"}
    config = json.loads((CONFIGS / model.config / "unet" / "config.json").read_text())
    conditional = "cross_attention_dim" in config
    return {
        "version": 1,
        "name": model.config,
        "model": {"source": f"configs/{model.config}"},
        "calibration": {"sampler": {"kind": "ddim"}, "conditions": prompts if conditional else {"kind": "none"}},
        "stages": [{"kind": "quantize", **_formats(bits)}],
    }


def _formats(bits: int) -> dict[str, Any]:
    return {
        "weights": {"format": f"int{bits}", "granularity": "channel", "symmetric": False},
        "activations": {"format": "int8", "granularity": "tensor", "mode": "static", "symmetric": False},
    }


def planned_by_class(adapter: Adapter, bits: int) -> dict[str, float]:
    """MiB of our file by tensor class, `header` included; the classes add up to the plan's bytes."""
    skeleton = adapter.skeleton()
    formats = _formats(bits)
    weights, inputs = WeightSettings(**formats["weights"]), ActivationSettings(**formats["activations"])
    assignments = assign(adapter.layers(skeleton), weights, inputs, ())
    swap_layers(skeleton, {a.info.name: a.spec for a in assignments if a.spec is not None})
    tensors = planned_tensors(skeleton, {})
    found: Counter[str] = Counter()
    for tensor in tensors:
        found[tensor_class(tensor.name)] += tensor.bytes
    found["header"] = file_bytes(tensors) - sum(found.values())
    return {name: count / MIB for name, count in sorted(found.items())}


def count(adapter: Adapter) -> Counts:
    """The numbers of a denoiser, from its configuration."""
    skeleton = adapter.skeleton()
    layers = [m for m in skeleton.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return Counts(
        parameters=sum(p.numel() for p in skeleton.parameters()),
        weights=sum(layer.weight.numel() for layer in layers),
        channels=sum(layer.weight.shape[0] for layer in layers),
        layers=len(layers),
    )


def explanation(model: Published, counts: Counts, bits: int) -> dict[str, float]:
    """MiB of what a checkpoint must hold beyond codes, if everything that is no code is fp32."""
    steps = 1 if model.symmetric else 2
    return {
        "scales and zero points": 8 * counts.channels / MIB,
        "biases and norms in fp32": 4 * counts.unquantized * (1 - bits / 32) / MIB,
        "activation steps per timestep": 4 * steps * model.groups * counts.layers / MIB,
    }


def measure(model: Published) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a model, and facts about it."""
    adapter = open_adapter(resolve(str(CONFIGS / model.config)))
    counts, fp32, rows = count(adapter), 0.0, []
    for bits in BITS:
        plan = plan_of(model, bits)
        fp32 = plan.fp32_bytes / MIB
        ours = plan.predicted_bytes / MIB
        parts = planned_by_class(adapter, bits)
        if abs(sum(parts.values()) - ours) * MIB > 0.5:
            raise RuntimeError(f"{model.title}: the parts of our file add up to {sum(parts.values())} MiB, not {ours}")
        base = model.fp32 if model.fp32 is not None else fp32
        formula = base * bits / 32
        published = formula + (model.constant or 0.0) if model.sizes is None else model.sizes[bits]
        constant = published - formula
        explained = explanation(model, counts, bits)
        rows.append(Row(model.title, bits, published, formula, constant, ours, parts, explained))
    constants = [row.constant for row in rows]
    facts: dict[str, Any] = {
        "model": model.title,
        "parameters": counts.parameters,
        "fp32_mib": fp32,
        "published_fp32_mib": model.fp32,
        "layers": counts.layers,
        "output_channels": counts.channels,
        "constant_mib": sum(constants) / len(constants),
        "constant_floats_per_output_channel": sum(constants) / len(constants) * MIB / 4 / counts.channels,
        "symmetric_activations": model.symmetric,
    }
    if model.gmacs is not None and model.tbops is not None:
        macs = macs_of_one_token(plan)
        facts |= {
            "published_gmacs": model.gmacs,
            "macs": macs,
            "gmacs_of_2_20": macs / MIB / 1000,
            "published_tbops_w8a8": model.tbops,
            "tbops_w8a8": macs * 64 / 1e12,
            "tbops_w8a8_of_2_20": macs * 64 / MIB / 1e6,
        }
    return rows, facts


def macs_of_one_token(plan: Plan) -> int:
    """Multiply-accumulates of one forward whose context is one class embedding; the plan counts CLIP's tokens."""
    context = sum(layer.macs for layer in plan.layers if layer.name.endswith(("attn2.to_k", "attn2.to_v")))
    return plan.original.macs - context + context // CLIP_TOKENS


def markdown(rows: list[Row], facts: list[dict[str, Any]]) -> str:
    """The report for people."""
    sizes = [
        [
            f"{row.model}, W{row.bits}",
            f"{row.published:.1f}",
            f"{row.formula:.1f}",
            f"{row.constant:.1f}",
            *(f"{value:.2f}" for value in row.explained.values()),
            f"{row.unexplained:.1f}",
            f"{row.ours:.1f}",
        ]
        for row in rows
    ]
    classes = list(dict.fromkeys(name for row in rows for name in row.ours_by_class))
    parts = [
        [f"{r.model}, W{r.bits}", *(f"{r.ours_by_class.get(c, 0):.2f}" for c in classes), f"{r.ours:.2f}"] for r in rows
    ]
    models = [
        [
            str(f["model"]),
            f"{f['parameters'] / 1e6:.2f} M",
            f"{f['fp32_mib']:.1f}",
            "" if f["published_fp32_mib"] is None else f"{f['published_fp32_mib']:g}",
            f"{f['constant_mib']:.1f}",
            f"{f['output_channels']:,}",
            f"{f['constant_floats_per_output_channel']:.1f}",
            "symmetric" if f["symmetric_activations"] else "asymmetric",
        ]
        for f in facts
    ]
    explained = list(rows[0].explained)
    text = [
        "# Published sizes",
        _fill(f"Every number is in MiB (2^20 bytes), which is what the papers call MB. Published: {SOURCE}."),
        "## Models\nFrom public configurations alone (recipes/configs).",
        _grid(["", "parameters", "fp32", "published", "constant", "output channels", "floats each", "inputs"], models),
        _fill(_CONSTANT),
        "## Sizes",
        _grid(["", "published", "fp32 x b/32", "constant", *explained, "unexplained", "ours"], sizes),
        _fill(_UNEXPLAINED),
        "## Our files",
        _grid(["", *classes, "total"], parts),
        "## Bit operations",
    ]
    text += [_fill(_operations(f)) for f in facts if "macs" in f]
    return "\n\n".join(text) + "\n"


def _operations(f: Mapping[str, Any]) -> str:
    return (
        f"{f['model']}: published {f['published_gmacs']:g} GMAC and {f['published_tbops_w8a8']:g} T bit operations at "
        f"W8A8, which is x 64. We count {f['macs'] / 1e9:.2f} x 10^9 in linear layers and convolutions, with one "
        f"context token (the class). In units of 2^20 x 1000 that is {f['gmacs_of_2_20']:.2f}, and "
        f"{f['tbops_w8a8_of_2_20']:.2f} x 2^20 x 10^6 bit operations: the published numbers, in mixed units. In plain "
        f"ones W8A8 is {f['tbops_w8a8']:.2f} x 10^12."
    )


def _fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    return table(columns, rows, range(1, len(columns))).rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Write reports/published-sizes.json and .md."""
    parser = argparse.ArgumentParser(prog="benchmarks.published_sizes", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "reports", help="folder of the report")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    facts: list[dict[str, Any]] = []
    for model in MODELS:
        found, about = measure(model)
        rows += found
        facts.append(about)
        print(model.title, *(f"W{row.bits}: published {row.published:.1f}, ours {row.ours:.1f} MiB" for row in found))
    data = {"source": SOURCE, "models": facts, "rows": [{**r._asdict(), "unexplained": r.unexplained} for r in rows]}
    given.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(given.output / "published-sizes.json", json.dumps(data, indent=2) + "\n")
    write_text_atomically(given.output / "published-sizes.md", markdown(rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
