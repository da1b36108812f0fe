"""Q-Diffusion: calibrate at even timesteps, split concatenated inputs, learn rounding block by block.

Li et al., "Q-Diffusion: Quantizing Diffusion Models" (ICCV 2023). The trajectory is sampled at uniform intervals (their
section 4.1, the recipe's `timesteps: {kind: uniform}`); layers that read a concatenation become two operators, each
with scales of its own (section 4.2); every unit's weight rounding is learned to reproduce the unit's output
(AdaRound in BRECQ's blocks; phase W), then its input scales (phase A).

Departures from the paper and its code:
- Activations are rounded at the inputs of linear and convolution layers. The attention products stay in floating point
  unless the stage has `attention:`, and are in floating point while units learn (theirs: q, k, v of 8 bits, the softmax
  of 8 or, for Stable Diffusion, 16 bits, with scales that are learned but for the latter).
- Units are the adapter's blocks, and every layer outside them is one of its own. A transformer block holds its
  attention, as theirs; attention blocks outside of those are units too.
- Input scales begin with what the recipe's observer finds on the whole trajectory in the full-precision model; their
  scripts use 16 to 64 inputs, and for some models a running mean (`observer: {kind: ema}`).
- Dynamic inputs have a scale for each token, found at run time: phase A passes them over.
- Ranges always contain zero, so that zero points fit the unsigned codes.
- Units without anything to learn are skipped; the released code builds an optimizer without parameters and stops.
- The recipe decides about bits: the released code has no exception for the first and the last layer, neither have we.

- A unit whose learning ends with a larger error than it began with keeps what it began with.

`mode: compat` has three quirks of the released code: the rounding of the skip half of split layers is not pushed to up
or down; a unit's error is summed over dimension 1, which is channels for images but tokens for sequences; and a unit
keeps what was learned, better or not.
It does not reproduce what gives no usable model or cannot be carried over: the mse search of symmetric weights, which
searches one code range and rounds in another; dropout that is active while the units learn; the running mean over
inputs in the order of logging, which forgets all but the last timesteps (observers belong to the recipe, not to the
method); more timesteps than asked for when their number does not divide the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from compress.quantize.calibrated import (
    LearnedRounding,
    learn_inputs,
    learn_weights,
    open_simulation,
    packed_layers,
    require_integer_grid,
)
from compress.quantize.job import Method, QuantizedLayer, QuantizeJob, Surroundings
from compress.quantize.reconstruct import StepSettings
from compress.quantize.rules import Assignment

STEP_SHARE = 4  # the paper learns input scales for a quarter of the iterations that it gives weights


class QDiffusion(LearnedRounding):
    """Learn rounding and input scales unit by unit, on even timesteps of the model's own sampling."""

    kind: Literal["q_diffusion"] = "q_diffusion"
    step_iterations: int | None = Field(
        None, ge=0, description="The same for the input scales; a quarter of `iterations` when null, 0 learns none."
    )
    step_learning_rate: float = Field(4e-4, gt=0, description="Of Adam, for static input scales; falls to 0 (cosine).")

    def steps(self) -> StepSettings | None:
        """Phase A of the engine, None to leave it out."""
        if self.step_iterations == 0:
            return None
        return StepSettings(
            iterations=self.step_iterations or max(1, self.iterations // STEP_SHARE),
            batch_size=self.batch_size,
            learning_rate=self.step_learning_rate,
            keep_better=self.mode == "paper",
        )


def prepare(settings: QDiffusion, assignments: Sequence[Assignment], around: Surroundings) -> list[Assignment]:
    """The recipe's formats. Raises RecipeError for those without an integer grid."""
    require_integer_grid("q_diffusion", assignments)
    return list(assignments)


def run(settings: QDiffusion, job: QuantizeJob) -> Iterator[QuantizedLayer]:
    """Phase W over all units, phase A over those with static inputs, then every layer in order."""
    with open_simulation(job, settings.ranges, inputs=settings.inputs, mode=settings.mode) as simulation:
        learn_weights(simulation, settings.rounding())
        steps = settings.steps()
        if steps is not None:
            learn_inputs(simulation, steps, asymmetric=False)  # as the released code: units see the original's inputs
        yield from packed_layers(simulation)


def needs_trajectory(settings: QDiffusion) -> bool:
    """Always: the units learn from what they see while the model samples."""
    return True


METHOD = Method(
    name="q_diffusion",
    title="Q-Diffusion",
    citation="Li et al. 2023, Q-Diffusion: Quantizing Diffusion Models, ICCV, arXiv 2302.04304",
    summary="Learns weight rounding, then static input scales, block by block along the sampling; splits shortcuts.",
    settings=QDiffusion,
    run=run,
    prepare=prepare,
    needs_trajectory=needs_trajectory,
    split="shortcut",
)
