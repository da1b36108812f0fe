"""Calibration: samples with the full-precision model, logs what it saw, and replays that to observers."""

from compress.calibration.capture import capture, layer_inputs, load_inputs, run_over, save_inputs
from compress.calibration.conditions import Conditions, ConditionSettings, resolve_conditions
from compress.calibration.policies import TimestepPolicy
from compress.calibration.sampler import (
    Call,
    ConditionPair,
    Denoise,
    Draw,
    Sampler,
    call_timesteps,
    denoise_with,
    initial_noise,
    make_scheduler,
    sample,
    sample_batches,
    sample_generators,
)
from compress.calibration.trajectory import Record, Trajectory, TrajectorySpec, log_trajectory, spec_hash

__all__ = [
    "Call",
    "ConditionPair",
    "ConditionSettings",
    "Conditions",
    "Denoise",
    "Draw",
    "Record",
    "Sampler",
    "TimestepPolicy",
    "Trajectory",
    "TrajectorySpec",
    "call_timesteps",
    "capture",
    "denoise_with",
    "initial_noise",
    "layer_inputs",
    "load_inputs",
    "log_trajectory",
    "make_scheduler",
    "resolve_conditions",
    "run_over",
    "sample",
    "sample_batches",
    "sample_generators",
    "save_inputs",
    "spec_hash",
]
