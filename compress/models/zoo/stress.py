"""Harder variants of the bundled models: the same function, with the activation outliers of large transformers.

A few channels of a large transformer are about a hundred times the rest, and one scale for a whole tensor or token then
leaves the rest no bits (Dettmers et al. 2022, section 3). The bundled models are too small to have such channels.
SmoothQuant (Xiao et al. 2023, eq. 3) divides channels of X in Y = (X diag(s)^-1) (diag(s) W) to remove outliers; used
the other way round it plants them. The outputs change by rounding only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.config import content_hash
from compress.errors import ModelError, OutputError, explain_os_error, os_error_of
from compress.files import file_sha256, flush_tree, locked
from compress.models.layout import has_weights, read_json
from compress.models.tensors import read_tensors
from compress.models.zoo.bundle import WEIGHTS_NAME

CACHE_VARIABLE = "COMPRESS_CACHE"
FACTOR = 100.0
SHARE = 0.01  # of the channels of each place, at least one


@dataclass(frozen=True)
class Rows:
    """Rows of a layer from `start` on, one per channel; the forward uses their output plus `offset`."""

    layer: str
    start: int = 0
    offset: float = 0.0  # 1 where adaptive norms compute 1 + scale


@dataclass(frozen=True)
class Rescaling:
    """Channels of the input of layer `place` to multiply by `factor`.

    `producers` are the rows that make these channels, all of them linear in the channel; `consumers` are all the
    layers that read it.
    """

    place: str
    channels: tuple[int, ...]
    factor: float
    producers: tuple[Rows, ...]
    consumers: tuple[str, ...]


def outlier_rescalings(config: Mapping[str, Any], tensors: Mapping[str, Tensor], seed: int = 0) -> list[Rescaling]:
    """Every place of a denoiser where outliers can be planted, each with its own random channels.

    Args:
        config: the denoiser's configuration, for its class.
        tensors: its weights by name.
        seed: the channels of a place depend on it and on the place's name.

    Raises:
        ModelError: the class is not known here.
    """
    if config.get("_class_name") not in _PLACES:
        raise ModelError(
            f"no place for outliers is known in {config.get('_class_name')}", hint=f"known: {', '.join(_PLACES)}"
        )
    found = []
    for producers, consumers in _PLACES[config["_class_name"]](tensors):
        place = consumers[0]
        channels = _draw(place, tensors[f"{place}.weight"].shape[1], seed)
        found.append(Rescaling(place, channels, FACTOR, producers, consumers))
    return found


def rescale(tensors: Mapping[str, Tensor], rescalings: list[Rescaling]) -> dict[str, Tensor]:
    """Copies of all tensors, floating ones as float32, with the rescalings applied in float64.

    Where the forward uses `offset + w x + b`, the bias becomes `factor (offset + b) - offset`.
    """
    new = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    new = {name: tensor.clone() for name, tensor in new.items()}
    for item in rescalings:
        channels = torch.tensor(item.channels)
        for rows in item.producers:
            new[f"{rows.layer}.weight"][rows.start + channels] *= item.factor
            bias = new.get(f"{rows.layer}.bias")
            if bias is not None:
                bias[rows.start + channels] = item.factor * (rows.offset + bias[rows.start + channels]) - rows.offset
        for layer in item.consumers:
            new[f"{layer}.weight"][:, channels] /= item.factor
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in new.items()}


_Places = Iterator[tuple[tuple[Rows, ...], tuple[str, ...]]]


def _dit_places(tensors: Mapping[str, Tensor]) -> _Places:
    """Adaptive norms and attention values; the GELU inside the feed-forward is not linear in its channels.

    `norm1.linear` yields shift, scale and gate of the attention, then those of the feed-forward.
    """
    for norm in _prefixes(tensors, ".norm1.linear.weight"):
        attention, forward = f"{norm}.attn1", f"{norm}.ff.net.0.proj"
        modulation, width = f"{norm}.norm1.linear", tensors[f"{forward}.weight"].shape[1]
        yield (Rows(modulation), Rows(modulation, width, 1.0)), _readers(attention)
        yield (Rows(f"{attention}.to_v"),), (f"{attention}.to_out.0",)
        yield (Rows(modulation, 3 * width), Rows(modulation, 4 * width, 1.0)), (forward,)
    yield (Rows("proj_out_1"), Rows("proj_out_1", tensors["proj_out_2.weight"].shape[1], 1.0)), ("proj_out_2",)


def _unet_places(tensors: Mapping[str, Tensor]) -> _Places:
    """Attention's group norm and values; the SiLU before each convolution is not linear in its channels.

    The residual that attention adds leaves before the group norm, so it is not scaled.
    """
    for attention in _prefixes(tensors, ".to_q.weight"):
        if f"{attention}.group_norm.weight" in tensors:
            yield (Rows(f"{attention}.group_norm"),), _readers(attention)
        yield (Rows(f"{attention}.to_v"),), (f"{attention}.to_out.0",)


_PLACES: dict[str, Callable[[Mapping[str, Tensor]], _Places]] = {
    "DiTTransformer2DModel": _dit_places,
    "UNet2DModel": _unet_places,
}
STRESSES: dict[str, tuple[str, Callable[..., list[Rescaling]]]] = {
    "outliers": ("1 % of the channels of every place that allows it are a hundred times larger", outlier_rescalings)
}
"""What `zoo://NAME?stress=VALUE` takes: in words, and as a function."""


def _prefixes(tensors: Mapping[str, Tensor], suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]


def _readers(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.{name}" for name in ("to_q", "to_k", "to_v"))


def _draw(place: str, width: int, seed: int) -> tuple[int, ...]:
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    chosen: list[int] = torch.randperm(width, generator=generator)[: max(1, round(SHARE * width))].tolist()
    return tuple(sorted(chosen))


def cache_folder() -> Path:
    """Where made variants are kept: $COMPRESS_CACHE, else `compress` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "compress"
    return folder.expanduser().absolute()


def stressed_folder(source: Path, stress: str, cache: Path | None = None) -> Path:
    """Pipeline folder of the variant of the pipeline in `source`, made on first use and found again afterwards.

    It is built beside its final name and renamed when complete, under a lock: a second process waits for the first.

    Args:
        cache: where variants are kept; None means `cache_folder()`.

    Raises:
        ModelError: there is no such stress, or the source cannot be read.
        OutputError: the cache cannot be written.
    """
    if stress not in STRESSES:
        raise ModelError(f"unknown stress {stress!r}", hint=f"known: {', '.join(STRESSES)}")
    final = (cache or cache_folder()) / "zoo" / f"{source.name}-{stress}-{_key(source, stress)[:20]}"
    if _is_whole(final, source):
        return final
    try:
        with locked(final.with_name(f"{final.name}.lock")):
            if not _is_whole(final, source):
                _publish(source, stress, final)
    except Exception as error:  # safetensors wraps I/O errors in its own
        reason = os_error_of(error)
        explained = error if isinstance(error, OutputError) else explain_os_error(reason, final) if reason else None
        if explained is None:
            raise
        explained.hint = explained.hint or f"set {CACHE_VARIABLE} to a folder that can be written"
        raise explained from error.__cause__ or error
    return final


def _publish(source: Path, stress: str, final: Path) -> None:
    work = final.with_name(f"{final.name}.partial")
    for left_over in (work, final):  # of a killed process, or damaged
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        write_variant(source, stress, work)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_variant(source: Path, stress: str, folder: Path) -> Path:
    """The variant of the pipeline folder `source`, with float32 weights, in the new folder `folder`; returns it.

    Float16 would round every rescaled weight anew, and the function would change.
    """
    component = _component(source)
    with read_tensors(source / component) as reader:
        tensors = {name: reader.get(name) for name in reader.names()}
    rescalings = STRESSES[stress][1](read_json(source / component / "config.json"), tensors)
    for path in _texts(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    save_file(rescale(tensors, rescalings), folder / component / WEIGHTS_NAME, metadata={"format": "pt"})
    flush_tree(folder)  # or a power cut after the rename may leave an empty file
    return folder


def _component(source: Path) -> str:
    component = next((part for part in ("transformer", "unet") if has_weights(source / part)), None)
    if component is None:
        raise ModelError("there are no weights to stress", where=str(source))
    return component


def _texts(source: Path) -> list[Path]:
    """The configurations: all that a variant shares with its source, whose card speaks of the source alone."""
    return [path for path in sorted(source.rglob("*.json")) if not path.name.endswith(".safetensors.index.json")]


def _key(source: Path, stress: str) -> str:
    """Hash of all that determines a variant: the source's files, the option, and this file."""
    weights = sorted((source / _component(source)).glob("*.safetensors"))
    files = [Path(__file__), *_texts(source), *weights]
    return content_hash([stress, [file_sha256(path) for path in files]])


def _is_whole(variant: Path, source: Path) -> bool:
    """Whether every file is there, texts as in the source and weights as long as their header says."""
    try:
        read_tensors(variant / _component(source)).close()
        texts = {path.relative_to(source): path.read_bytes() for path in _texts(source)}
        return all((variant / name).read_bytes() == text for name, text in texts.items())
    except (ModelError, OSError):
        return False
