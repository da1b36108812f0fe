"""A trained model as it ships: weights, sample grid, and a model card whose figures are measured here and now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.models.pipelines import pixel_pipeline_class
from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.classifier import judge, load_classifier

GRID_ROWS = 5


class Score(NamedTuple):
    """Class accuracy (a fraction) of `n` images drawn with DDIM of `steps` steps and this guidance."""

    accuracy: float
    n: int
    steps: int
    guidance: float


def draw(pipeline: Any, labels: Tensor, steps: int, guidance: float, seed: int, batch: int = 100) -> Tensor:
    """Images `[n, 1, h, w]` in [-1, 1] of the given classes; image i has a noise of its own, by (seed, i)."""
    parts = []
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(some))]
        out = pipeline(some, guidance, steps, generators, output_type="pt")
        parts.append(out.images * 2 - 1)
    return torch.cat(parts)


def score(pipeline: Any, n: int, steps: int, guidance: float = 1.5, seed: int = 1) -> Score:
    """Share of images that the bundled classifier takes for the class asked of the model."""
    labels = torch.arange(n) % 10
    images = draw(pipeline, labels, steps, guidance, seed)
    found = judge(load_classifier(), images).logits.argmax(1)
    return Score(float((found == labels).double().mean()), n, steps, guidance)


def write_card(
    model: Any, folder: Path, scheduler_config: Mapping[str, Any], facts: Mapping[str, Any], n: int
) -> Score:
    """Write the pipeline folder of a trained model with samples.png and README.md; returns its main score."""
    from diffusers import DDIMScheduler

    write_bundled_model(model, folder, scheduler_config)
    loaded = type(model).from_pretrained(folder, subfolder="transformer")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipeline = pixel_pipeline_class()(scheduler=scheduler, transformer=loaded.eval(), null_class=10)
    grid = draw(pipeline, torch.arange(10 * GRID_ROWS) % 10, 50, 1.5, seed=0)
    save_grid(grid, folder / "samples.png")
    scores = [score(pipeline, n, steps) for steps in (20, 50)]
    (folder / "README.md").write_text(card_text(facts, scores, sum(p.numel() for p in model.parameters())))
    return scores[-1]


def save_grid(images: Tensor, path: Path, columns: int = 10, scale: int = 4) -> None:
    """A PNG of grey images `[n, 1, h, w]` in [-1, 1], row by row."""
    from PIL import Image

    n, _, height, width = images.shape
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0]
    sheet = pixels.reshape(n // columns, columns, height, width).permute(0, 2, 1, 3).reshape(-1, columns * width)
    large = sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    Image.fromarray(large.contiguous().numpy()).save(path)


def card_text(facts: Mapping[str, Any], scores: list[Score], parameters: int) -> str:
    """The model card."""
    rows = "\n".join(f"| {s.steps} | {s.guidance:g} | {s.n} | {100 * s.accuracy:.1f} % |" for s in scores)
    settings, drop = json.dumps(facts["settings"], indent=2), 100 * facts["settings"]["label_dropout"]
    return f"""# digits-dit

A class-conditional diffusion transformer on 16x16 handwritten digits, trained by this project so that compression can
be tried and tested on a real model without a download.

![samples, one column a class](samples.png)

- Class: diffusers `DiTTransformer2DModel`, {parameters / 1e6:.2f} M distinct parameters; every block holds an
  identical copy of the timestep and label embedder, as converted DiT-XL/2 does. Stored in float16.
- Data: MNIST, training split (60,000 digits), padded to 32x32 and averaged over 2x2 pixels.
- Objective: v prediction (Salimans and Ho 2022), cosine schedule (squaredcos_cap_v2), {drop:.0f} % of the labels
  dropped.
- Training: {facts["history"]}; the moving average of the weights ships.

| DDIM steps | guidance | images | class accuracy |
| ---: | ---: | ---: | ---: |
{rows}

Class accuracy is the share of images that the bundled `digits-classifier` takes for the class asked for.

Command, resumable from its own state in the folder of `--output`:

    {facts["command"]}

<details><summary>Settings</summary>

```json
{settings}
```

</details>

Licence: Apache-2.0. MNIST: LeCun, Cortes and Burges 1998.
"""
