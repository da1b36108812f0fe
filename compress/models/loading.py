"""Builds a denoiser: on the meta device from its configuration, or with its weights, strictly."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from compress.errors import InputError, ModelError
from compress.models.adapter import ModelSource
from compress.models.layout import component_files, component_folder

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """The floating type of that name.

    Raises:
        InputError: it is none of float32, float16, bfloat16.
    """
    if name not in _DTYPES:
        raise InputError(f"unknown dtype {name!r}", hint=f"choose {', '.join(_DTYPES)}")
    return _DTYPES[name]


def denoiser_class(source: ModelSource) -> Any:
    """The diffusers class of the source's denoiser.

    Raises:
        ModelError: diffusers has no model of that name.
    """
    import diffusers

    # A lazily imported module answers for absent optional packages with placeholder classes, which are no modules.
    cls = getattr(diffusers, source.denoiser_class, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ModelError(
            f"{source.denoiser_class!r} is no model class of diffusers {diffusers.__version__}",
            where=str(component_folder(source) / "config.json"),
            hint="update diffusers, or correct _class_name",
        )
    return cls


def build_skeleton(source: ModelSource) -> nn.Module:
    """The denoiser on the meta device, in eval mode.

    Raises:
        ModelError: the configuration does not fit its class.
    """
    cls = denoiser_class(source)
    accepted = set(inspect.signature(cls.__init__).parameters)
    # Configurations carry keys of other diffusers versions; from_config would warn about each of them.
    config = {key: value for key, value in source.config.items() if key in accepted}
    try:
        with torch.device("meta"):
            model: nn.Module = cls.from_config(config)
    except (TypeError, ValueError, KeyError, NotImplementedError, ZeroDivisionError) as error:
        raise ModelError(
            f"{cls.__name__} refuses its configuration: {error}", where=str(component_folder(source) / "config.json")
        ) from error
    # Tables that a constructor makes with numpy ignore the device context.
    return model.to("meta").eval().requires_grad_(False)


def load_denoiser(source: ModelSource, dtype: str, device: str) -> nn.Module:
    """The denoiser with its weights, in eval mode, without gradients.

    diffusers only warns about tensors that are missing or left over, and leaves random weights in their place; here
    both are errors.

    Raises:
        ModelError: weights are missing, truncated, superfluous or of another shape.
        InputError: unknown dtype.
    """
    cls, weights_dtype, folder = denoiser_class(source), torch_dtype(dtype), component_folder(source)
    component_files(folder)
    try:
        model, report = cls.from_pretrained(
            folder, torch_dtype=weights_dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"{cls.__name__} cannot be loaded: {_first_lines(error)}", where=str(folder)) from error
    for problem, kind in (("lack", "missing_keys"), ("have the unexpected", "unexpected_keys")):
        names = sorted(report[kind])
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the weights {problem} {names[0]}{more}",
                where=str(folder),
                hint="are they of another model or version?",
            )
    loaded: nn.Module = model.to(device).eval().requires_grad_(False)
    return loaded


def _first_lines(error: Exception, length: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + " …"
