"""Sample grids as PNG."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from compress.errors import FormatError
from compress.report.figures import GUTTER, sample_grid_png, side_by_side


def decoded(png: str) -> torch.Tensor:
    image = Image.open(io.BytesIO(base64.b64decode(png, validate=True)))
    assert image.mode == "RGBA"
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 4)


def test_range_ends_become_black_and_white_and_beyond_is_clipped() -> None:
    values = torch.tensor([-1.0, 1.0, -7.0, 7.0, 0.0, float("nan")]).reshape(6, 1, 1, 1)
    pixels = decoded(sample_grid_png(values, columns=6, scale=1))
    shown = pixels[0, :: 1 + GUTTER, 0].tolist()
    assert shown == [0, 255, 0, 255, 128, 0]
    assert (pixels[0, :: 1 + GUTTER, 3] == 255).all()


@pytest.mark.parametrize(("count", "columns", "scale"), [(1, 5, 1), (7, 3, 2), (6, 3, 4)])
def test_grid_geometry_nearest_enlargement_and_clear_gutters(count: int, columns: int, scale: int) -> None:
    images = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = decoded(sample_grid_png(images, columns, scale))
    wide = min(columns, count)
    rows = -(-count // wide)
    step_y, step_x = 5 * scale + GUTTER, 4 * scale + GUTTER
    assert sheet.shape == (rows * step_y - GUTTER, wide * step_x - GUTTER, 4)
    expected = ((images[-1] + 1) / 2 * 255).round().to(torch.uint8).permute(1, 2, 0)
    top, left = (count - 1) // wide * step_y, (count - 1) % wide * step_x
    tile = sheet[top : top + 5 * scale, left : left + 4 * scale]
    assert torch.equal(tile[::scale, ::scale, :3], expected)
    assert torch.equal(tile[scale - 1 :: scale, scale - 1 :: scale, :3], expected)
    assert int((sheet[..., 3] == 255).sum()) == count * 20 * scale * scale


def test_the_same_images_give_the_same_bytes() -> None:
    images = torch.zeros(2, 1, 3, 3)
    assert sample_grid_png(images, 2) == sample_grid_png(images, 2)


@pytest.mark.parametrize(
    ("shape", "columns", "scale"),
    [((0, 1, 4, 4), 1, 1), ((1, 2, 4, 4), 1, 1), ((4, 4), 1, 1), ((1, 1, 4, 4), 0, 1), ((1, 1, 4, 4), 1, 0)],
)
def test_what_cannot_be_drawn_is_refused(shape: tuple[int, ...], columns: int, scale: int) -> None:
    with pytest.raises(FormatError):
        sample_grid_png(torch.zeros(shape), columns, scale)


def test_side_by_side_gives_a_row_per_artefact_of_one_width() -> None:
    reference = torch.zeros(12, 1, 16, 16)
    figures = side_by_side(reference, {"checkpoint": reference + 0.5, "onnx": reference - 0.5}, count=5, note="ddim")
    assert [figure.title for figure in figures] == ["reference", "checkpoint", "onnx"]
    assert {figure.group for figure in figures} == {"Samples"} and figures[0].note == "ddim"
    assert {decoded(figure.png_base64).shape for figure in figures} == {(96, 5 * 98 - 2, 4)}


def test_side_by_side_shows_what_there_is() -> None:
    (figure,) = side_by_side(torch.zeros(3, 3, 200, 200), {}, count=10)
    assert decoded(figure.png_base64).shape == (200, 3 * 202 - 2, 4)


def test_side_by_side_wants_one_shape() -> None:
    with pytest.raises(FormatError, match="same noise"):
        side_by_side(torch.zeros(3, 1, 4, 4), {"onnx": torch.zeros(2, 1, 4, 4)})
