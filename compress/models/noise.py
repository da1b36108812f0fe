"""Noise levels: sigma <-> timestep, and every kind of model output as predicted noise.

A diffusion sample is x_t = a_t x_0 + b_t e with e ~ N(0, 1). Variance-preserving models have a_t = sqrt(abar_t) and
b_t = sqrt(1 - abar_t) (Ho et al. 2020, eq. 4); flow models have a = 1 - s and b = s (Lipman et al. 2023, sec. 4.1;
Liu et al. 2023, eq. 1). In both, sigma = b / a is the noise level relative to the data (Karras et al. 2022, Table 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from compress.errors import ModelError

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample"}
# Zero-terminal-SNR schedules (Lin et al. 2024) end at abar = 0, that is sigma = infinity, which cannot be interpolated.
_SMALLEST_ABAR = 1e-12


class Scales(NamedTuple):
    """Weights of data and noise in a sample: x_t = signal * x_0 + noise * e."""

    signal: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of one model, in its own timesteps.

    Args:
        prediction: what the model's output means.
        alphas_cumprod: abar `[train_timesteps]` of a variance-preserving model, None for a flow model.
        train_timesteps: t runs over [0, train_timesteps - 1] (variance-preserving) or [0, train_timesteps] (flow).
    """

    prediction: Prediction
    alphas_cumprod: Tensor | None
    train_timesteps: int

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, like `t` in shape; log sigma is linear between the trained timesteps, flat beyond them.

        Flow models: sigma = s / (1 - s) with s = t / train_timesteps, which is infinite at pure noise.
        """
        if self.alphas_cumprod is None:
            s = t.double() / self.train_timesteps
            return _like(s / (1 - s), t)
        table = self._log_sigmas(t.device)
        position = t.double().clamp(0, len(table) - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=len(table) - 1)
        return _like(torch.lerp(table[low], table[high], position - low).exp(), t)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of a noise level: the inverse of `sigma`, clamped to the trained range."""
        if self.alphas_cumprod is None:
            return _like(self.train_timesteps / (1 + 1 / sigma.double()), sigma)
        table = self._log_sigmas(sigma.device)
        log_sigma = sigma.double().log().clamp(table[0], table[-1])
        high = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        below, above = table[high - 1], table[high]
        return _like(high - 1 + (log_sigma - below) / (above - below), sigma)

    def scales(self, t: Tensor) -> Scales:
        """Data and noise weights at `t`, both like `t` in shape."""
        if self.alphas_cumprod is None:
            s = t.double() / self.train_timesteps
            return Scales(_like(1 - s, t), _like(s, t))
        sigma = self.sigma(t.double())
        signal = (1 + sigma.square()).rsqrt()  # abar + (1 - abar) = 1 with sigma = b / a
        return Scales(_like(signal, t), _like(sigma * signal, t))

    def to_epsilon(self, output: Tensor, sample: Tensor, t: Tensor) -> Tensor:
        """Predicted noise `[b, ...]` from a model's `output` for the noisy `sample` at `t` `[b]`.

        With x = a x_0 + b e:
            epsilon       e
            v_prediction  v = a e - b x_0, hence e = a v + b x  (Salimans and Ho 2022, appendix D)
            sample        e = (x - a x_0) / b
            flow          v = e - x_0 with a = 1 - s, b = s, hence e = x + (1 - s) v
        """
        if self.prediction == "epsilon":
            return output
        extra = (1,) * (sample.dim() - 1)
        signal, noise = (scale.reshape(-1, *extra).to(sample.dtype) for scale in self.scales(t.to(sample.device)))
        if self.prediction == "v_prediction":
            return signal * output + noise * sample
        if self.prediction == "sample":
            return (sample - signal * output) / noise
        return sample + signal * output

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Noise schedule of a diffusers `scheduler_config.json`; sampling-time settings (shift, spacing) play no part.

        Raises:
            ModelError: the class is unknown, or has neither cumulative alphas nor a flow.
        """
        name, prediction = str(config.get("_class_name", "")), str(config.get("prediction_type", "epsilon"))
        if name.startswith("FlowMatch") or prediction == "flow_prediction":
            return cls("flow", None, int(config.get("num_train_timesteps", 1000)))
        if prediction not in _PREDICTIONS:
            raise ModelError(
                f"unknown prediction type {prediction!r} of {name}", hint=f"one of {', '.join(_PREDICTIONS)}"
            )
        table = _alphas_cumprod(name, config)
        if not bool((table[1:] < table[:-1]).all()):
            raise ModelError(f"the cumulative alphas of {name} do not decrease", hint="check the betas in its config")
        return cls(_PREDICTIONS[prediction], table, len(table))

    def _log_sigmas(self, device: torch.device) -> Tensor:
        assert self.alphas_cumprod is not None
        abar = self.alphas_cumprod.to(device=device, dtype=torch.float64).clamp_min(_SMALLEST_ABAR)
        return 0.5 * ((1 - abar) / abar).log()


def _alphas_cumprod(name: str, config: Mapping[str, Any]) -> Tensor:
    """abar `[train_timesteps]`, float64, as the scheduler itself computes it."""
    import diffusers

    scheduler = getattr(diffusers, name, None)
    if scheduler is None:
        raise ModelError(f"diffusers {diffusers.__version__} has no scheduler {name!r}", hint="update diffusers")
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    alphas = getattr(scheduler.from_config(known), "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        raise ModelError(
            f"{name} has no cumulative alphas, so its noise levels are unknown",
            hint="use a DDPM-like or flow-matching scheduler",
        )
    return alphas.detach().to("cpu", torch.float64)


def _like(value: Tensor, given: Tensor) -> Tensor:
    """`value` in double precision if that was given, else in single precision."""
    return value.to(torch.float64 if given.dtype == torch.float64 else torch.float32)
