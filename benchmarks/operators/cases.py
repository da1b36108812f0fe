"""The layers that are measured: those of DiT-XL/2, PixArt, FLUX, the U-Net of Stable Diffusion 1.5, and Sana.

PixArt's blocks have the widths of DiT-XL/2's (1152 and 4608), so only its caption projection is a shape of its own.
Sana's feed-forward has a depthwise convolution (Xie et al. 2024): of 2 * 2.5 * 1152 channels in its 0.6 B model, on
32x32 latents of images of 1024x1024.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from benchmarks.peers import ConvGeometry, Kind, Layer

ROWS = (1, 8, 64, 256, 512, 1024, 4096)
"""Tokens times batch: 1 and 8 are embeddings and modulations, 256 an image of DiT-XL/2, 4096 one of FLUX."""


@dataclass(frozen=True)
class Shape:
    """One layer's weight; `name` is what `--only` matches together with the rows."""

    kind: Kind
    model: str
    n: int
    k: int
    rows: tuple[int, ...]
    geometry: ConvGeometry | None = None
    image: tuple[int, int, int, int] | None = None  # b c h w of a convolution's input

    @property
    def op(self) -> str:
        return "qmatmul" if self.kind == "matmul" else "qconv2d"

    @property
    def name(self) -> str:
        if self.geometry is None or self.image is None:
            return f"{self.model}/{self.k}x{self.n}"
        kernel, stride, _, groups = self.geometry
        _, c, h, w = self.image
        more = f"{f'/stride{stride}' if stride > 1 else ''}{f'/groups{groups}' if groups > 1 else ''}"
        return f"{self.model}/{c}-{self.n}@{h}x{w}/{kernel}x{kernel}{more}"

    def layer(self, seed: int, threads: int) -> Layer:
        """Weight and input of normal numbers, never zeros; the weight keeps the input's variance."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.n, self.k)
        weight = torch.randn(shape, generator=generator) / self.k**0.5
        if self.geometry is None or self.image is None:
            return Layer(weight, torch.randn(max(self.rows), self.k, generator=generator), None, threads)
        kernel = self.geometry.kernel
        x = torch.randn(self.image, generator=generator)
        return Layer(weight.reshape(self.n, -1, kernel, kernel), x, self.geometry, threads)


@dataclass(frozen=True)
class Case:
    """A shape with a number of rows: what one round of timings compares."""

    shape: Shape
    m: int

    @property
    def name(self) -> str:
        return f"{self.shape.op}/{self.shape.name}/m{self.m}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one call."""
        return 2 * self.m * self.shape.k * self.shape.n


def _matmul(model: str, k: int, n: int, rows: tuple[int, ...] = ROWS) -> Shape:
    return Shape("matmul", model, n, k, rows)


def _conv(
    channels: int, n: int, size: int, kernel: int = 3, stride: int = 1, groups: int = 1, model: str = "sd15-unet"
) -> Shape:
    geometry = ConvGeometry(kernel, stride, kernel // 2, groups)
    batch = 2
    out = (size + 2 * geometry.padding - kernel) // stride + 1
    image = (batch, channels, size, size)
    return Shape("conv", model, n, channels // groups * kernel * kernel, (batch * out * out,), geometry, image)


SHAPES = (
    _matmul("dit-xl-2", 1152, 1152),
    _matmul("dit-xl-2", 1152, 3456),
    _matmul("dit-xl-2", 1152, 4608),
    _matmul("dit-xl-2", 4608, 1152),
    _matmul("pixart", 4096, 1152),
    _matmul("flux", 3072, 3072),
    _matmul("flux", 3072, 9216),
    _matmul("flux", 3072, 12288),
    _matmul("flux", 12288, 3072),
    _conv(320, 320, 64),
    _conv(640, 640, 32),
    _conv(1280, 1280, 16),
    _conv(1280, 1280, 8),
    _conv(960, 320, 64, kernel=1),
    _conv(320, 320, 64, stride=2),
    _conv(5760, 5760, 32, groups=5760, model="sana"),
)
QUICK = (_matmul("dit-xl-2", 1152, 4608, (64, 256)), _conv(1280, 1280, 8))


def cases(quick: bool, only: tuple[str, ...] = ()) -> list[Case]:
    """The cases in order, those whose name fits one of the globs `only`, or all."""
    found = [Case(shape, m) for shape in (QUICK if quick else SHAPES) for m in shape.rows]
    return [case for case in found if not only or any(fnmatchcase(case.name, glob) for glob in only)]
