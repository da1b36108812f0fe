"""Sample images as embedded PNG: plain grids, and rows of artefacts whose columns share the same noise."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.report.model import Figure

GUTTER = 2


def sample_grid_png(images: Tensor, columns: int, scale: int = 4) -> str:
    """Base64 of a PNG that shows images `[n, c, h, w]` in [-1, 1], row by row, each pixel `scale` pixels wide.

    Values outside the range are clipped and NaN is drawn black. The gutters are transparent, so the grid fits a light
    page and a dark one.

    Raises:
        FormatError: not four dimensions, no image, or neither one nor three channels.
    """
    if images.dim() != 4 or images.shape[0] == 0 or images.shape[1] not in (1, 3):
        shape = list(images.shape)
        raise FormatError(f"cannot draw images of shape {shape}", hint="expected [n, 1, h, w] or [n, 3, h, w], n >= 1")
    if columns < 1 or scale < 1:
        raise FormatError(f"cannot draw a grid of {columns} columns at scale {scale}", hint="both must be at least 1")
    from PIL import Image

    pixels = _tile(_to_bytes(images, scale), min(columns, images.shape[0]))
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def side_by_side(
    reference: Tensor, others: Mapping[str, Tensor], count: int = 10, *, group: str = "Samples", note: str = ""
) -> list[Figure]:
    """One figure an artefact, each a row of the first `count` images, column for column from the same noise.

    Args:
        reference: images `[n, c, h, w]` of the original model in [-1, 1].
        others: the images of each artefact, same shape, by its name.
        group: heading under which the report lines the rows up.
        note: what a reader should know: sampler, steps, classes of the columns.

    Raises:
        FormatError: an artefact's images differ in shape from the reference's, or cannot be drawn.
    """
    for name, images in others.items():
        if images.shape != reference.shape:
            shapes = f"{list(images.shape)} and {list(reference.shape)}"
            raise FormatError(
                f"images of {name} and of the reference have shapes {shapes}", hint="sample both from the same noise"
            )
    shown = min(count, reference.shape[0]) if reference.dim() == 4 else count
    width = reference.shape[-1]
    scale = max(1, round(96 / max(width, 1)))
    rows = {"reference": reference, **others}
    return [
        Figure(group=group, title=name, png_base64=sample_grid_png(images[:shown], shown, scale), note=note)
        for name, images in rows.items()
    ]


def _to_bytes(images: Tensor, scale: int) -> Tensor:
    """RGBA `[n, h * scale, w * scale, 4]` uint8, opaque, enlarged by repetition."""
    unit = (images.detach().float().cpu().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) / 2
    rgb = (unit * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    rgba = torch.cat((rgb, torch.full_like(rgb[:, :1], 255)), dim=1).permute(0, 2, 3, 1)
    return rgba.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def _tile(images: Tensor, columns: int) -> Tensor:
    """One RGBA sheet `[H, W, 4]` of images `[n, h, w, 4]`; gutters and the places left over are transparent."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = torch.zeros(rows * (height + GUTTER) - GUTTER, columns * (width + GUTTER) - GUTTER, 4, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GUTTER), (index % columns) * (width + GUTTER)
        sheet[top : top + height, left : left + width] = image
    return sheet
