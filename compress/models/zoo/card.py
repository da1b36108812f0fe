"""A trained model as it ships: weights, sample grid, and a model card measured on what was written."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.models.inspect import Inspection, inspect_model
from compress.models.pipelines import register_pipelines
from compress.models.source import open_adapter, resolve
from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.classifier import CLASSIFIERS, DigitClassifier, classifier_folder, judge, load_classifier

GRID_ROWS = 5
STEPS = (20, 50)
GUIDANCE = 1.5
GRID_SEED, SCORE_SEED = 0, 1


class TrainingFacts(NamedTuple):
    """What a card tells of a training: training images, steps, wall seconds, machine in words, command, settings."""

    images: int
    steps: int
    seconds: float
    machine: str
    command: str
    settings: Mapping[str, Any]


class Score(NamedTuple):
    """Class accuracy (a fraction) of `n` images drawn with DDIM of `steps` steps."""

    accuracy: float
    n: int
    steps: int


def load_pipeline(folder: Path) -> Any:
    """The pipeline of a bundled model's folder, computing in float32, without a progress bar."""
    from diffusers import DiffusionPipeline

    register_pipelines()
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, labels: Tensor, steps: int, guidance: float, seed: int, batch: int = 64) -> Tensor:
    """Images `[n, 1, h, w]` in [-1, 1] of the given classes; image i has a noise of its own, by (seed, i)."""
    parts = []
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(some))]
        out = pipeline(some, guidance, steps, generators, output_type="pt")
        parts.append(out.images * 2 - 1)
    return torch.cat(parts)


def score(pipeline: Any, classifier: DigitClassifier, n: int, steps: int) -> Score:
    """Share of n images, classes in turn, that the classifier takes for the class asked of the model."""
    labels = torch.arange(n) % classifier.head.out_features
    images = draw(pipeline, labels, steps, GUIDANCE, SCORE_SEED)
    found = judge(classifier, images).logits.argmax(1)
    return Score(float((found == labels).double().mean()), n, steps)


def write_card(
    name: str, model: Any, folder: Path, scheduler_config: Mapping[str, Any], facts: TrainingFacts, n: int
) -> list[str]:
    """Write the pipeline folder of a trained model with samples.png and README.md; returns the scores as sentences.

    Grid and scores come from the float16 weights read back from the folder.

    Args:
        name: of the bundled model; says who judges it.
        model: class-conditional DiTTransformer2DModel or UNet2DModel, on the CPU.
        n: images a score is measured on.
    """
    write_bundled_model(model, folder, scheduler_config)
    pipeline, classifier = load_pipeline(folder), load_classifier(classifier_folder(CLASSIFIERS[name]))
    classes = classifier.head.out_features
    grid = draw(pipeline, torch.arange(classes * GRID_ROWS) % classes, STEPS[-1], GUIDANCE, GRID_SEED)
    save_grid(grid, folder / "samples.png", classes)
    scores = [score(pipeline, classifier, n, steps) for steps in STEPS]
    # Modules that blocks share in memory count once here; the file holds a copy for each.
    distinct = sum(parameter.numel() for parameter in model.parameters())
    inspection = inspect_model(open_adapter(resolve(str(folder))))
    text = card_text(name, inspection, distinct, model.config, pipeline.scheduler.config, facts, scores)
    (folder / "README.md").write_text(text, encoding="utf8")
    return [
        f"{folder}: class accuracy {100 * s.accuracy:.1f} % (DDIM {s.steps} steps, n = {s.n:,}, seed {SCORE_SEED})"
        for s in scores
    ]


def save_grid(images: Tensor, path: Path, columns: int = 10, scale: int = 4) -> None:
    """A PNG of grey images `[n, 1, h, w]` in [-1, 1], row by row; n is a multiple of `columns`."""
    from PIL import Image

    n, _, height, width = images.shape
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0]
    sheet = pixels.reshape(n // columns, columns, height, width).permute(0, 2, 1, 3).reshape(-1, columns * width)
    large = sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    Image.fromarray(large.contiguous().numpy()).save(path)


def card_text(
    name: str,
    inspection: Inspection,
    distinct: int,
    config: Mapping[str, Any],
    schedule: Mapping[str, Any],
    facts: TrainingFacts,
    scores: Sequence[Score],
) -> str:
    """The model card.

    Args:
        inspection: of the written folder.
        distinct: parameters without the copies of shared modules.
        config: the model's.
        schedule: the scheduler's configuration.
    """
    title, architecture = _ARCHITECTURES[inspection.denoiser_class]
    settings, size = facts.settings, config["sample_size"]
    precision = "bfloat16 autocast" if settings["autocast"] else "float32"
    rows = "\n".join(f"| {s.steps} | {GUIDANCE:g} | {s.n:,} | {100 * s.accuracy:.1f} % |" for s in scores)
    points = [
        f"Class: {architecture(config)} {_parameters(inspection.parameters, distinct)}",
        f"Cost: {(inspection.bytes_on_disk or 0) / 1e6:.2f} MB of float16 weights; {inspection.macs / 1e6:.1f} M "
        "multiply-accumulates a forward of one image. Guidance takes two forwards a step.",
        f"Data: MNIST, training split ({facts.images:,} digits), padded to 32x32 and averaged over 2x2 pixels.",
        f"Objective: {_OBJECTIVES[schedule['prediction_type']]}, {_schedule(schedule)}, "
        f"{100 * settings['label_dropout']:g} % of the labels dropped.",
        f"Training: {facts.steps:,} steps of {settings['batch']} images in {precision}, "
        f"{facts.seconds / 60:.0f} minutes on {facts.machine}; the moving average of the weights ships.",
    ]
    listed = "\n".join(
        textwrap.fill(point, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for point in points
    )
    return f"""# {name}

A class-conditional {title} on {size}x{size} handwritten digits, trained by this project so that compression can
be tried and tested on a real model without a download.

![samples, one column a class](samples.png)

{listed}

| DDIM steps | guidance | images | class accuracy |
| ---: | ---: | ---: | ---: |
{rows}

Class accuracy is the share of images that the bundled `{CLASSIFIERS[name]}` takes for the class asked for; the noise
of image i is seeded by ({SCORE_SEED}, i). More seeds, intervals and distances from real digits are in the repository's
`reports/reference-models.md`.

Command, resumable from its own state in the folder of `--output`:

    {facts.command}

<details><summary>Settings</summary>

```json
{json.dumps(dict(settings), indent=2)}
```

</details>

Licence: Apache-2.0. MNIST: LeCun, Cortes and Burges 1998.
"""


def _dit(config: Mapping[str, Any]) -> str:
    heads, patch = config["num_attention_heads"], config["patch_size"]
    return (
        f"diffusers `DiTTransformer2DModel` (Peebles and Xie 2023), {config['num_layers']} blocks of width "
        f"{heads * config['attention_head_dim']} with {heads} heads, {(config['sample_size'] // patch) ** 2} tokens of "
        f"{patch}x{patch} pixels. Every block holds an identical copy of the timestep and label embedder, as converted "
        "DiT-XL/2 does."
    )


def _unet(config: Mapping[str, Any]) -> str:
    widths = [str(width) for width in config["block_out_channels"]]
    attention = sum("Attn" in kind for kind in config["down_block_types"])
    return (
        f"diffusers `UNet2DModel` (Ho et al. 2020), levels of {', '.join(widths[:-1])} and {widths[-1]} channels, "
        f"{config['layers_per_block']} residual blocks a level on the way down and one more on the way up, attention "
        f"at the lowest {attention} of {len(widths)}. Skip connections are concatenated and enter residual blocks with "
        "a 1x1 `conv_shortcut`; the class joins the timestep by addition."
    )


_ARCHITECTURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "DiTTransformer2DModel": ("diffusion transformer", _dit),
    "UNet2DModel": ("U-Net", _unet),
}
_OBJECTIVES = {"v_prediction": "v prediction (Salimans and Ho 2022)", "epsilon": "noise prediction (Ho et al. 2020)"}


def _parameters(stored: int, distinct: int) -> str:
    if stored == distinct:
        return f"{stored / 1e6:.2f} M parameters."
    return f"{stored / 1e6:.2f} M parameters, {distinct / 1e6:.2f} M of them distinct."


def _schedule(config: Mapping[str, Any]) -> str:
    kind = config["beta_schedule"]
    if kind == "squaredcos_cap_v2":  # its betas do not come from the two bounds
        return f"cosine schedule ({kind})"
    return f"{kind} schedule (beta {config['beta_start']:g} to {config['beta_end']:g})"
