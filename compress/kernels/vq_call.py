"""One call of an operator with vector-quantized weights: its inputs and attributes by name, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import torch
from torch import Tensor

from compress.formats import packed_bytes
from compress.formats.vq import vector_count
from compress.kernels.call import Call, Convolution, Facts

CODEBOOK_DTYPES: Final = (torch.float32, torch.float16, torch.int8)
SCALE_DTYPES: Final = (torch.float32, torch.float16)


@dataclass(frozen=True, eq=False)
class VqMatmulCall(Call):
    """Arguments of `vqmatmul`, in the order and with the defaults of `schema.VQMATMUL` (a test compares them)."""

    name: ClassVar[str] = "vqmatmul"

    x: Tensor
    codes: Tensor
    codebook: Tensor
    scales: Tensor
    bias: Tensor | None = None
    act_scale: Tensor | None = None
    act_zero_point: Tensor | None = None
    smooth: Tensor | None = None
    low_rank_a: Tensor | None = None
    low_rank_b: Tensor | None = None
    residual: Tensor | None = None
    bits: int = field(kw_only=True)
    d: int = field(kw_only=True)
    act_format: str = field(default="none", kw_only=True)
    act_group: int = field(default=0, kw_only=True)
    mode: str = field(default="exact", kw_only=True)
    activation: str = field(default="none", kw_only=True)

    @property
    def folds(self) -> bool:
        """Whether the codebook is rounded to int8: not in mode `exact`, nor where it is int8."""
        return self.mode == "folded" and self.codebook.dtype != torch.int8

    def facts(self) -> Facts:
        """What backends decide on."""
        return replace(
            super().facts(), vector=self.d, integer_codebook=self.codebook.dtype == torch.int8, folds=self.folds
        )

    def _check_weight(self) -> None:
        if not 1 <= self.bits <= 8 or self.d < 1:
            self._refuse(f"bits={self.bits}, d={self.d}: 1 to 8 bits, sub-vectors of at least 1")
        need = (self.n, packed_bytes(vector_count(self.k, self.d), self.bits))
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != need:
            self._refuse(
                f"codes are {self.codes.dtype} {list(self.codes.shape)}, k={self.k} needs torch.uint8 {list(need)}"
            )
        entries = (1 << self.bits, self.d)
        if self.codebook.dtype not in CODEBOOK_DTYPES or tuple(self.codebook.shape) != entries:
            self._refuse(
                f"codebook is {self.codebook.dtype} {list(self.codebook.shape)}, "
                f"not float32, float16 or int8 {list(entries)}"
            )
        if tuple(self.scales.shape) not in ((1, 1), (self.n, 1)):
            self._refuse(f"scales {list(self.scales.shape)} are neither [1, 1] nor {[self.n, 1]}")
        if self.scales.dtype not in SCALE_DTYPES:
            self._refuse(f"scales are {self.scales.dtype}, not float32 or float16")


@dataclass(frozen=True, eq=False)
class VqConvCall(Convolution, VqMatmulCall):
    """Arguments of `vqconv2d`, in the order and with the defaults of `schema.VQCONV2D`."""

    name: ClassVar[str] = "vqconv2d"
