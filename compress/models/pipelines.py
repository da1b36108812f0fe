"""The class-conditional pipeline in pixel space, for models that need no autoencoder and no text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from compress.errors import InputError
from compress.models.zoo.bundle import PIPELINE_CLASS


@cache
def pixel_pipeline_class() -> Any:
    """`ClassConditionalPixelPipeline`, a `DiffusionPipeline` with the components transformer or unet, and scheduler.

    Made on first use, because its base class pulls in all of diffusers.
    """
    from diffusers import DiffusionPipeline

    body = {
        "__doc__": _PixelPipeline.__doc__,
        # Where pickle and a reader find it, and what save_pretrained may name.
        "__module__": "compress.diffusers",
        "_optional_components": ["transformer", "unet"],
        "model_cpu_offload_seq": "transformer->unet",
    }
    return type(PIPELINE_CLASS, (_PixelPipeline, DiffusionPipeline), body)


def register_pipelines() -> None:
    """Put our pipeline classes into the `diffusers` module, where `DiffusionPipeline.from_pretrained` looks."""
    import diffusers

    setattr(diffusers, PIPELINE_CLASS, pixel_pipeline_class())


class _PixelPipeline:
    """Samples images `[b, c, h, w]` in [-1, 1] of given classes, with classifier-free guidance (Ho and Salimans 2022).

    The denoiser is `transformer` (DiTTransformer2DModel) or `unet` (UNet2DModel with a class table); `null_class` is
    the label that means "no class", None for a model that was trained without one.
    """

    # Of diffusers.DiffusionPipeline, which stands behind this class.
    register_modules: Callable[..., None]
    register_to_config: Callable[..., None]
    progress_bar: Callable[[Any], Any]
    numpy_to_pil: Callable[[Any], Any]
    maybe_free_model_hooks: Callable[[], None]
    _execution_device: torch.device
    config: Any
    transformer: Any
    unet: Any
    scheduler: Any

    def __init__(
        self,
        scheduler: object,
        transformer: torch.nn.Module | None = None,
        unet: torch.nn.Module | None = None,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        if (transformer is None) == (unet is None):
            raise InputError(f"{PIPELINE_CLASS} takes a transformer or a unet, and not both")
        self.register_modules(scheduler=scheduler, transformer=transformer, unet=unet)
        self.register_to_config(null_class=null_class)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor,
        guidance_scale: float = 1.5,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images of the given classes, one per label.

        Args:
            class_labels: class indices `[b]`.
            guidance_scale: w of e_null + w (e_class - e_null); 1 or less turns guidance off.
            num_inference_steps: scheduler steps.
            generator: source of the initial noise and of the scheduler's own, one or one per image.
            latents: standard normal initial noise `[b, c, h, w]` instead of drawn one.
            eta: stochasticity of DDIM (Song et al. 2021, eq. 16); other schedulers ignore it.
            output_type: "pil", "np" (`[b, h, w, c]` in [0, 1]) or "pt" (`[b, c, h, w]` in [0, 1]).
            return_dict: `ImagePipelineOutput` if true, else a tuple.

        Raises:
            InputError: an unknown output type, or guidance for a model without a null class.
        """
        from diffusers import ImagePipelineOutput

        if output_type not in ("pil", "np", "pt"):
            raise InputError(f"unknown output_type {output_type!r}", hint="pil, np or pt")
        labels = torch.as_tensor(class_labels, device=self._execution_device).reshape(-1)
        sample = self._initial_sample(len(labels), generator, latents, num_inference_steps)
        extra = step_arguments(self.scheduler, generator=generator, eta=eta)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self._guided(sample, t, labels, guidance_scale)
            sample = self.scheduler.step(output, t, sample, **extra, return_dict=False)[0]
        images = self._decode(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def _denoiser(self) -> Any:
        return self.unet if self.transformer is None else self.transformer

    def _initial_sample(
        self, count: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None, steps: int
    ) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        denoiser, device = self._denoiser, self._execution_device
        size = denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, denoiser.config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=denoiser.dtype)
        elif tuple(latents.shape) != shape:
            raise InputError(f"latents have the shape {tuple(latents.shape)}", hint=f"{shape} fits the labels")
        self.scheduler.set_timesteps(steps, device=device)
        return latents.to(device, denoiser.dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _guided(self, sample: Tensor, t: Tensor, labels: Tensor, guidance_scale: float) -> Tensor:
        null = self.config.null_class
        guide = guidance_scale > 1
        if guide and null is None:
            raise InputError("this model has no null class to guide away from", hint="pass guidance_scale=1")
        if guide:
            sample, labels = torch.cat([sample, sample]), torch.cat([labels, torch.full_like(labels, null)])
        if hasattr(self.scheduler, "scale_model_input"):
            sample = self.scheduler.scale_model_input(sample, t)
        times = t.to(sample.device).expand(len(sample))
        output: Tensor = self._denoiser(sample, times, class_labels=labels, return_dict=False)[0]
        output = output[:, : sample.shape[1]]  # without the variance that DiT also learns
        if not guide:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _decode(self, sample: Tensor, output_type: str) -> Any:
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).float().cpu().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays


def step_arguments(scheduler: Any, **candidates: Any) -> dict[str, Any]:
    """Those of the candidates that the scheduler's `step` takes: schedulers differ in `generator` and `eta`."""
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in candidates.items() if name in accepted}
