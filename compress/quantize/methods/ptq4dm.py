"""PTQ4DM: round to nearest, with ranges that fit what the denoiser sees at normally distributed timesteps.

Shang et al., "Post-training Quantization on Diffusion Models" (CVPR 2023). Its calibration set is the recipe's policy
`timesteps: {kind: normal}` ("NDTC", section 4.2); its input scales are the observer `ema_mse`: the range of least
error |x - x'|^2.4 of every batch, averaged from batch to batch (section 4.3). What is left for the method itself are
the weights: for every channel the symmetric range of least error among 1 %, 2 %, … 100 % of its largest magnitude.

Departures from the paper and its code:
- Inputs of layers are rounded, not outputs: an output scale leaves the input of the next convolution, which lies behind
  norm and activation, on no integer grid, and integer operators need one.
- Sample and timestep of a calibration input belong together. The released code pairs the sample of step i with the
  timestep of step T - i, counted on the respaced grid (0 to 249 where the model knows 0 to 3999); `pairing: compat` of
  the policy does the first.
- Every linear and convolution that the recipe does not keep is quantized. The released code replaces two kinds of
  layers and so leaves attention's projections, which are one-dimensional convolutions there, in floating point: in a
  recipe, `rules: [{role: attention_q, keep: true}, …]`.
- With `weights: {symmetric: false}` codes are the paper's, unsigned with a zero point, which lies in the middle unless
  all weights of a channel have one sign. The i-th threshold falls on the largest code, in the paper half a step beyond.
- Of the two searches for activations only the one over symmetric ranges is offered by that observer; the grid over all
  ranges and zero points is too slow for what it gains.
- The released scripts never switch on the reconstruction that lies in their code; it is left out here. Method
  `q_diffusion` learns rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.calibration.store import INDEX_FILE
from compress.calibration.trajectory import Trajectory
from compress.config import Config
from compress.formats import Scales, WeightSpec, quantize_weight, weight_scales
from compress.quantize.calibrated import calibration_of, require_integer_grid
from compress.quantize.job import Method, QuantizedLayer, QuantizedPart, QuantizeJob, Surroundings
from compress.quantize.ranges import RangeSearch, search_scales
from compress.quantize.rules import Assignment
from compress.quantize.spec import LayerSpec

POLICY, OBSERVER = "normal", "ema_mse"  # the paper's, by their names in recipes


class Ptq4dm(Config):
    """Round to nearest in searched symmetric ranges; calibrate at normally distributed timesteps."""

    kind: Literal["ptq4dm"] = "ptq4dm"
    ranges: RangeSearch = Field(
        RangeSearch(kind="mse", norm=2.4, steps=100), description="How the range of a weight is found."
    )


def symmetric_ranges(weight: Tensor, spec: WeightSpec, search: RangeSearch) -> Scales:
    """Scales, as stored, of a weight `[n, ...]` whose ranges are symmetric around 0, or one-sided as the weights are.

    With zero points, those of two-sided blocks are the middle code, `2**(bits - 1)`. Blocks are one-sided when no code
    is left for the other sign.

    Raises:
        FormatError: weights that are not finite or no integer format, see `search_scales`.
    """
    if spec.symmetric:
        return search_scales(weight, spec, search)
    levels, middle = (1 << spec.number_format.bits) - 1, 1 << spec.number_format.bits - 1
    full = weight_scales(weight, spec).zero_points
    ends, centred = search_scales(weight, spec, search), search_scales(weight, replace(spec, symmetric=True), search)
    assert full is not None and ends.zero_points is not None
    one_sided = (full == 0) | (full == levels)
    zero_points = torch.where(one_sided, ends.zero_points, torch.full_like(full, middle))
    return Scales(torch.where(one_sided, ends.scales, centred.scales), zero_points)


def quantize_layer(name: str, weight: Tensor, spec: LayerSpec, search: RangeSearch) -> QuantizedLayer:
    """A layer's weight, part by part, to nearest in its searched ranges; input scales are those that were measured."""
    parts = []
    for part in spec.parts(tuple(weight.shape)):
        half = weight[:, part.start : part.stop]
        found = symmetric_ranges(half, spec.weights, search)
        parts.append(QuantizedPart(quantize_weight(half, spec.weights, found.scales, found.zero_points)))
    return QuantizedLayer(name, tuple(parts))


def prepare(settings: Ptq4dm, assignments: Sequence[Assignment], around: Surroundings) -> list[Assignment]:
    """The recipe's formats. Raises RecipeError for those without an integer grid."""
    require_integer_grid("ptq4dm", assignments)
    return list(assignments)


def run(settings: Ptq4dm, job: QuantizeJob) -> Iterator[QuantizedLayer]:
    """Quantize layer after layer."""
    note_departures(job)
    for assignment in job.assignments:
        assert assignment.spec is not None
        name = assignment.info.name
        yield quantize_layer(name, job.read(f"{name}.weight"), assignment.spec, settings.ranges)
        job.tick(name)


def note_departures(job: QuantizeJob) -> None:
    """Say where the recipe calibrates input scales otherwise than the paper does, which it may."""
    if not job.static_scales:
        return
    calibration = calibration_of(job)
    policy = timestep_policy(calibration.trajectory())
    if policy != POLICY:
        calibration.progress.note(
            f"ptq4dm: input scales come from `{policy}` timesteps; the paper's are `timesteps: {{kind: {POLICY}}}`"
        )
    observers = {a.activations.observer.kind for a in job.assignments if _is_static(a)}
    for kind in sorted(observers - {OBSERVER}):
        calibration.progress.note(
            f"ptq4dm: input scales come from the observer `{kind}`; the paper's is `observer: {{kind: {OBSERVER}}}`"
        )


def timestep_policy(trajectory: Trajectory) -> str:
    """Kind of the policy that chose a trajectory's timesteps, as its index tells."""
    index = json.loads((trajectory.folder / INDEX_FILE).read_text(encoding="utf8"))
    return str(index["spec"]["timesteps"]["kind"])


def _is_static(assignment: Assignment) -> bool:
    spec = assignment.spec
    return spec is not None and spec.activations is not None and spec.activations.mode == "static"


def needs_trajectory(settings: Ptq4dm) -> bool:
    """Always: the calibration set is what the paper is about."""
    return True


METHOD = Method(
    name="ptq4dm",
    title="PTQ4DM",
    citation="Shang et al. 2023, Post-training Quantization on Diffusion Models, CVPR, arXiv 2211.15736",
    summary="Nearest rounding in searched symmetric ranges; input scales from normally distributed timesteps.",
    settings=Ptq4dm,
    run=run,
    prepare=prepare,
    needs_trajectory=needs_trajectory,
)
