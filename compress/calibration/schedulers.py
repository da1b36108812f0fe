"""Short names of diffusers schedulers, and the checks that one fits a model's noise schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from compress.config import suggest
from compress.errors import RecipeError


class Kind(NamedTuple):
    """A diffusers class, and the settings that make it the sampler of that name."""

    class_name: str
    overrides: Mapping[str, Any] = {}


KINDS: Mapping[str, Kind] = {
    "ddim": Kind("DDIMScheduler"),
    "ddpm": Kind("DDPMScheduler"),
    "pndm": Kind("PNDMScheduler"),
    "euler": Kind("EulerDiscreteScheduler"),
    "euler_ancestral": Kind("EulerAncestralDiscreteScheduler"),
    "heun": Kind("HeunDiscreteScheduler"),
    "kdpm2": Kind("KDPM2DiscreteScheduler"),
    "kdpm2_ancestral": Kind("KDPM2AncestralDiscreteScheduler"),
    "lms": Kind("LMSDiscreteScheduler"),
    "dpmpp_2m": Kind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_sde": Kind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp_2s": Kind("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": Kind("UniPCMultistepScheduler"),
    "deis": Kind("DEISMultistepScheduler"),
    "sa_solver": Kind("SASolverScheduler"),
    "lcm": Kind("LCMScheduler"),
    "tcd": Kind("TCDScheduler"),
    "flow_match_euler": Kind("FlowMatchEulerDiscreteScheduler"),
    "flow_match_heun": Kind("FlowMatchHeunDiscreteScheduler"),
    "flow_match_lcm": Kind("FlowMatchLCMScheduler"),
}
_FLOW_KINDS = "flow_match_euler, flow_match_heun, dpmpp_2m or unipc"
_STEP_INPUTS = {"self", "model_output", "timestep", "sample"}


def build_scheduler(kind: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The scheduler `kind` (short name or class name) on the noise schedule of `scheduler_config`.

    Raises:
        RecipeError: unknown kind, or one that does not fit the model.
    """
    if not scheduler_config:
        raise RecipeError(
            "the model folder has no scheduler configuration", hint="use a pipeline folder that holds `scheduler/`"
        )
    cls, overrides = _scheduler_class(kind)
    flow = is_flow(scheduler_config)
    config = dict(scheduler_config)
    if str(config.get("variance_type", "")).startswith("learned"):
        # Adapters cut learned variances off the prediction, so the scheduler must use a fixed one: its default.
        del config["variance_type"]
    settings = dict(overrides) | (_flow_settings(cls, config) if flow else {})
    try:
        scheduler = cls.from_config(config, **settings)
    except (ImportError, TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"sampler `{kind}` cannot be built for this model: {reason}") from error
    _check_fit(kind, scheduler, flow)
    return scheduler


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether the configuration describes a flow-matching model rather than a variance-preserving one."""
    return (
        str(scheduler_config.get("_class_name", "")).startswith("FlowMatch")
        or scheduler_config.get("prediction_type") == "flow_prediction"
        or bool(scheduler_config.get("use_flow_sigmas"))
    )


def _scheduler_class(kind: str) -> tuple[Any, Mapping[str, Any]]:
    import diffusers

    entry = KINDS.get(kind, Kind(kind))
    # Another class of diffusers (a pipeline, a model) is as unknown here as a misspelt name.
    cls = getattr(diffusers, entry.class_name, None) if entry.class_name.endswith("Scheduler") else None
    if not inspect.isclass(cls):
        names = [*KINDS, *(name for name in dir(diffusers) if name.endswith("Scheduler"))]
        near = suggest(kind, names)
        hint = f"did you mean `{near}`?" if near else f"known: {', '.join(KINDS)}, or a diffusers class name"
        raise RecipeError(f"unknown sampler `{kind}`", hint=hint)
    return cls, entry.overrides


def _flow_settings(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The one timestep shift of a flow model, under the name that `cls` gives it."""
    shift = config.get("shift", config.get("flow_shift", 1.0))
    known = inspect.signature(cls.__init__).parameters
    if "use_flow_sigmas" in known:
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return {"shift": shift} if "shift" in known else {}


def _check_fit(kind: str, scheduler: Any, flow: bool) -> None:
    """Refuse what the denoiser loop cannot run rightly, each with its reason."""
    known = inspect.signature(type(scheduler).__init__).parameters
    flow_sampler = type(scheduler).__name__.startswith("FlowMatch") or (
        # `config` also keeps keys that the class itself does not know.
        "use_flow_sigmas" in known and scheduler.config.use_flow_sigmas
    )
    if not flow_sampler and not hasattr(scheduler, "alphas_cumprod"):
        raise RecipeError(f"sampler `{kind}` is neither variance-preserving nor flow matching", hint="e.g. ddim")
    if flow and not flow_sampler:
        raise RecipeError(
            f"sampler `{kind}` is for variance-preserving models; this is a flow model", hint=f"use {_FLOW_KINDS}"
        )
    if flow_sampler and not flow:
        raise RecipeError(
            f"sampler `{kind}` is for flow models; this is a variance-preserving model", hint="use e.g. ddim"
        )
    steps = inspect.signature(scheduler.step).parameters.values()
    extra = [
        p.name for p in steps if p.default is p.empty and p.name not in _STEP_INPUTS and p.kind is not p.VAR_KEYWORD
    ]
    if extra:
        raise RecipeError(f"sampler `{kind}` needs {', '.join(extra)} at every step, which only its own pipeline has")
    if "noise_sampler_seed" in scheduler.config:
        raise RecipeError(
            f"sampler `{kind}` draws one noise path for a whole batch, so samples would depend on the batch size",
            hint="use dpmpp_2m_sde",
        )
