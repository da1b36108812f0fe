"""One call of an operator: its inputs and attributes by name, checked, and the facts that backends decide on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from compress.errors import FormatError
from compress.formats import get_format, packed_bytes
from compress.kernels.folding import MOST_BITS, whole_factor
from compress.kernels.schema import ACTIVATIONS, OPERATORS


class ConvFacts(NamedTuple):
    """A convolution but for the sizes of its images."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Facts:
    """What a backend may decide on: shapes and attributes of one layer, and never the number of rows.

    Of all values only those of the code table count, which follow from the format's name.

    Without the number of rows a layer has one backend, so a row's result does not depend on the batch it comes in (but
    for the order of float additions under block scales), and a plan can name each layer's backend before anything is
    loaded.

    Attributes:
        k: contracted positions (`c / groups * kh * kw` for convolutions); n: output channels.
        scale_blocks: length of the last axis of the scales: 1 per tensor or channel, `k_blocks` per group.
        table_is_whole: the code table holds whole numbers that fit int8, after one multiplication by a power of two.
        folds: mode `folded` has something to fold.
        act_static: the activation scale is given.
        vector: weights that one code stands for, 0 for codes of single weights; integer_codebook: its codebook is int8.
        rank: of the low-rank branch, 0 without one. geometry: of convolutions.
    """

    k: int
    n: int
    bits: int
    block_size: int
    scale_blocks: int = 1
    table: bool = False
    zero_points: bool = False
    act_format: str = "none"
    act_group: int = 0
    act_static: bool = False
    act_zero_point: bool = False
    mode: str = "exact"
    device: str = "cpu"
    table_is_whole: bool = False
    folds: bool = False
    scale_dtype: str = "float32"
    global_scale: bool = False
    activation: str = "none"
    residual: bool = False
    vector: int = 0
    integer_codebook: bool = False

    smooth: bool = False
    rank: int = 0
    geometry: ConvFacts | None = None

    @property
    def folds_blocks(self) -> bool:
        """Whether block scales are folded, so that one scale serves a whole output channel."""
        return self.folds and not (self.table and not self.table_is_whole)


class Call:
    """What the calls of all operators share: names of fields, sizes, checks. Subclasses hold the fields, in order."""

    name: ClassVar[str]

    x: Tensor
    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    act_scale: Tensor | None
    act_zero_point: Tensor | None
    smooth: Tensor | None
    low_rank_a: Tensor | None
    low_rank_b: Tensor | None
    residual: Tensor | None
    bits: int
    act_format: str
    act_group: int
    mode: str
    activation: str

    @property
    def n(self) -> int:
        """Output channels."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Contracted positions."""
        return self.x.shape[-1]

    @property
    def channels(self) -> int:
        """Input channels, each of which has its smoothing factor."""
        return self.x.shape[-1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of y; plain size arithmetic, so it also works on symbolic sizes."""
        return (*self.x.shape[:-1], self.n)

    @property
    def act_scale_shape(self) -> tuple[int, ...]:
        """What a static activation scale must broadcast to: one scale for each group of each row."""
        groups = -(-self.k // self.act_group) if self.act_group else 1
        return (*self.x.shape[:-1], groups)

    def facts(self) -> Facts:
        """What backends decide on; one scale for a row, unless a subclass knows more."""
        return Facts(
            k=self.k,
            n=self.n,
            bits=self.bits,
            block_size=self.k,
            act_format=self.act_format,
            act_group=self.act_group,
            act_static=self.act_scale is not None,
            act_zero_point=self.act_zero_point is not None,
            mode=self.mode,
            device=self.x.device.type,
            scale_dtype=str(self.scales.dtype).removeprefix("torch."),
            activation=self.activation,
            residual=self.residual is not None,
            smooth=self.smooth is not None,
            rank=0 if self.low_rank_a is None else self.low_rank_a.shape[-1],
            geometry=self._geometry(),
        )

    def _geometry(self) -> ConvFacts | None:
        return None

    def check(self) -> None:
        """Raises FormatError, saying which input, when the arguments do not fit together.

        Operators and backends both ask; the second time costs nothing.
        """
        assert self._fits

    @cached_property
    def _fits(self) -> bool:
        self._check_weight()
        if self.mode not in ("exact", "folded"):
            self._refuse(f"mode {self.mode!r} is not exact or folded")
        self._check_activations()
        if (self.low_rank_a is None) != (self.low_rank_b is None):
            self._refuse("low_rank_a and low_rank_b go together")
        self._check_vectors()
        self._check_output()
        self._check_devices()
        return True

    def _check_weight(self) -> None:
        raise NotImplementedError

    def _check_activations(self) -> None:
        if self.act_zero_point is not None and self.act_scale is None:
            self._refuse("act_zero_point without act_scale")
        if self.act_format == "none":
            if self.act_scale is not None:
                self._refuse("act_scale with act_format 'none'")
            return
        if get_format(self.act_format).weights_only:
            self._refuse(f"{self.act_format} is a format of weights, not of activations")
        if get_format(self.act_format).kind == "float" and self.act_zero_point is not None:
            self._refuse(f"{self.act_format} activations have no zero point")
        if self.act_group < 0:
            self._refuse(f"act_group={self.act_group} is negative")
        for name in ("act_scale", "act_zero_point"):
            value: Tensor | None = getattr(self, name)
            if value is not None and not _broadcasts(value, self.act_scale_shape):
                self._refuse(f"{name} {list(value.shape)} does not broadcast against {list(self.act_scale_shape)}")

    def _check_vectors(self) -> None:
        """Kernels read these by address, so their sizes must be exact."""
        rank = () if self.low_rank_a is None else tuple(self.low_rank_a.shape[-1:])
        self._check_numbers("bias", (self.n,))
        self._check_numbers("smooth", (self.channels,))
        self._check_numbers("low_rank_a", (self.k, *rank))
        self._check_numbers("low_rank_b", (*rank, self.n))

    def _check_numbers(self, name: str, shape: tuple[int, ...]) -> None:
        """Of an optional input, that it is floating point and of that shape."""
        value: Tensor | None = getattr(self, name)
        if value is not None and (value.shape != shape or not value.is_floating_point()):
            self._refuse(f"{name} is {value.dtype} {list(value.shape)}, not floating point {list(shape)}")

    def _check_devices(self) -> None:
        device = self.x.device
        for name in _tensor_names(self.name):
            value: Tensor | None = getattr(self, name)
            if value is not None and value.device != device:
                self._refuse(f"{name} is on {value.device}, x on {device}")

    def _check_output(self) -> None:
        if self.activation not in ACTIVATIONS:
            self._refuse(f"activation {self.activation!r} is not {', '.join(ACTIVATIONS[:-1])} or {ACTIVATIONS[-1]}")
        y = self.residual
        if y is not None and (tuple(y.shape), y.dtype) != (tuple(self.output_shape), self.x.dtype):
            need = f"{self.x.dtype} {list(self.output_shape)}"
            self._refuse(f"residual is {y.dtype} {list(y.shape)}, the output is {need}")

    def _refuse(self, message: str) -> None:
        raise FormatError(message, where=f"compress::{self.name}")


@dataclass(frozen=True, eq=False)
class MatmulCall(Call):
    """Arguments of `qmatmul`, in the order and with the defaults of `schema.QMATMUL` (a test compares them)."""

    name: ClassVar[str] = "qmatmul"

    x: Tensor
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None
    table: Tensor | None = None
    bias: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero_point: Tensor | None = None
    smooth: Tensor | None = None
    low_rank_a: Tensor | None = None
    low_rank_b: Tensor | None = None
    global_scale: Tensor | None = None
    residual: Tensor | None = None
    bits: int = field(kw_only=True)
    block_size: int = field(kw_only=True)
    act_format: str = field(default="none", kw_only=True)
    act_group: int = field(default=0, kw_only=True)
    mode: str = field(default="exact", kw_only=True)
    activation: str = field(default="none", kw_only=True)

    @cached_property
    def table_is_whole(self) -> bool:
        """Whether the code table, if there is one, holds whole numbers that fit int8, up to a power of two."""
        return self.table is not None and self.bits <= MOST_BITS and whole_factor(self.table.tolist()) is not None

    @cached_property
    def folds(self) -> bool:
        """Whether the weight is folded: not in mode `exact`, nor where one scale and whole numbers do without."""
        if self.mode != "folded":
            return False
        return self.scales.shape[1] > 1 or (self.table is not None and not self.table_is_whole)

    @property
    def rounds_table(self) -> bool:
        """Whether folding means that the code table is rounded to int8, and nothing else."""
        return self.folds and self.table is not None and not self.table_is_whole

    def facts(self) -> Facts:
        """What backends decide on."""
        zero_blocks = 1 if self.zero_points is None else self.zero_points.shape[1]
        return replace(
            super().facts(),
            block_size=self.block_size,
            scale_blocks=max(self.scales.shape[1], zero_blocks),
            table=self.table is not None,
            zero_points=self.zero_points is not None,
            table_is_whole=self.table_is_whole,
            folds=self.folds,
            global_scale=self.global_scale is not None,
        )

    def _check_weight(self) -> None:
        if not 1 <= self.bits <= 8 or self.block_size < 1:
            self._refuse(f"bits={self.bits}, block_size={self.block_size}: 1 to 8 bits, a block of at least 1")
        need = (self.n, -(-self.k // self.block_size), packed_bytes(self.block_size, self.bits))
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != need:
            self._refuse(
                f"codes are {self.codes.dtype} {list(self.codes.shape)}, k={self.k} needs torch.uint8 {list(need)}"
            )
        if self.zero_points is not None and self.zero_points.dtype != torch.uint8:
            self._refuse(f"zero_points are {self.zero_points.dtype}, not torch.uint8")
        if self.scales.dtype != torch.uint8 and not self.scales.is_floating_point():
            self._refuse(f"scales are {self.scales.dtype}, not floating point or uint8 exponents")
        if self.global_scale is not None and self.global_scale.numel() != 1:
            self._refuse(f"global_scale has shape {list(self.global_scale.shape)}, not one element")
        for name in ("scales", "zero_points"):
            value: Tensor | None = getattr(self, name)
            if value is not None and not _broadcasts(value, need[:2], rank=2):
                self._refuse(f"{name} {list(value.shape)} do not broadcast against {list(need[:2])}")
        self._check_numbers("table", (1 << self.bits,))
        if self.table is not None and self.zero_points is not None:
            self._refuse("table and zero_points exclude each other")


@dataclass(frozen=True, eq=False)
class Convolution(Call):
    """What the calls of both convolutions share; goes before the class that holds the other fields."""

    kernel: tuple[int, int] = field(kw_only=True)
    stride: tuple[int, int] = field(default=(1, 1), kw_only=True)
    padding: tuple[int, int] = field(default=(0, 0), kw_only=True)
    dilation: tuple[int, int] = field(default=(1, 1), kw_only=True)
    groups: int = field(default=1, kw_only=True)

    @property
    def k(self) -> int:
        """Contracted positions."""
        return self.x.shape[1] // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def channels(self) -> int:
        """Input channels, of all groups."""
        return self.x.shape[1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of y."""
        sizes = zip(self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return (self.x.shape[0], self.n, *((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in sizes))

    @property
    def act_scale_shape(self) -> tuple[int, ...]:
        """What a static activation scale must broadcast to: one scale for each image."""
        return (self.x.shape[0], 1, 1, 1)

    def _geometry(self) -> ConvFacts:
        kernel, stride, padding, dilation = (
            (int(pair[0]), int(pair[-1])) for pair in (self.kernel, self.stride, self.padding, self.dilation)
        )
        return ConvFacts(self.channels, kernel, stride, padding, dilation, self.groups)

    def check(self) -> None:
        """Raises FormatError, saying which input, when the arguments do not fit together."""
        for name in ("kernel", "stride", "padding", "dilation"):
            if len(getattr(self, name)) != 2:
                self._refuse(f"{name} needs two values, not {list(getattr(self, name))}")
        if self.x.dim() != 4 or self.groups < 1 or self.x.shape[1] % self.groups or self.n % self.groups:
            self._refuse(f"x {list(self.x.shape)} and {self.n} outputs in {self.groups} groups")
        if self.act_group:
            self._refuse("activation groups exist for qmatmul only")
        if self.low_rank_a is not None and self.groups != 1:
            self._refuse("a low-rank branch needs groups=1")
        super().check()


@dataclass(frozen=True, eq=False)
class ConvCall(Convolution, MatmulCall):
    """Arguments of `qconv2d`, in the order and with the defaults of `schema.QCONV2D`."""

    name: ClassVar[str] = "qconv2d"


@functools.cache
def _tensor_names(op_name: str) -> tuple[str, ...]:
    """Inputs of an operator."""
    return next(tuple(tensor.name for tensor in o.inputs) for o in OPERATORS if o.name == op_name)


def _broadcasts(value: Tensor, shape: tuple[int, ...], rank: int | None = None) -> bool:
    if value.dim() > len(shape) or (rank is not None and value.dim() != rank):
        return False
    return all(a in (1, b) for a, b in zip(reversed(value.shape), reversed(shape), strict=False))
