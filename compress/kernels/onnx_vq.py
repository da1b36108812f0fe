"""Decoding of vector-quantized weights in standard ONNX operators, for the bodies of the model-local functions."""

from __future__ import annotations

from dataclasses import dataclass

from compress.formats.vq import vector_count
from compress.kernels.folding import PANEL_MAX, SMALLEST_LARGEST
from compress.kernels.onnx_activations import MIDDLE
from compress.kernels.onnx_graph import Body
from compress.kernels.onnx_weights import Order, WeightForm, first, unpack_blocks


@dataclass(frozen=True)
class VqForm:
    """What decoding depends on.

    Attributes:
        bits: bits of a code.
        d: weights that one code stands for.
        folded: the codebook is rounded to int8 first.
        codebook: its element type; half_scales: scales are float16.
        vectors: codes of a row where its bytes hold more, else 0.
        k: contracted length where the sub-vectors together are longer, else 0.
    """

    bits: int
    d: int
    folded: bool
    codebook: str
    half_scales: bool
    vectors: int
    k: int

    @classmethod
    def of(cls, bits: int, d: int, k: int, *, mode: str, codebook_dtype: str, scale_dtype: str) -> VqForm:
        """The form of a call; an int8 codebook needs no folding."""
        vectors = vector_count(k, d)
        return cls(
            bits=bits,
            d=d,
            folded=mode == "folded" and codebook_dtype != "int8",
            codebook=codebook_dtype,
            half_scales=scale_dtype == "float16",
            vectors=WeightForm.trims(bits, vectors, vectors)[0],
            k=k if k % d else 0,
        )

    @property
    def whole(self) -> bool:
        """Whether codewords are multiplied as whole numbers of 8 bits."""
        return self.folded or self.codebook == "int8"

    @property
    def overload_parts(self) -> list[str]:
        """What tells forms apart in the name of a function; that inputs are float16 is told elsewhere."""
        parts = [f"vq{self.bits}", f"d{self.d}"]
        parts += ["int8codebook"] if self.codebook == "int8" else []
        parts += ["folded"] if self.folded else []
        parts += [f"vectors{self.vectors}"] if self.vectors else []
        return parts + ([f"k{self.k}"] if self.k else [])


def vq_weight(body: Body, form: VqForm, order: Order) -> str:
    """The decoded float32 weight `[k, n]` or `[n, k]`."""
    weight = body.op("Mul", _rows(body, form, _codewords(body, form)), vq_scales(body, form))
    return weight if order == "nk" else body.op("Transpose", weight, perm=[1, 0])


def vq_bytes(body: Body, form: VqForm, order: Order) -> str:
    """The weight in whole numbers, uint8 `[k, n]` or `[n, k]` with 128 for 0, of a form that is `whole`."""
    middle = body.op("Add", _codewords(body, form), body.scalar(MIDDLE))
    weight = _rows(body, form, body.cast(middle, "UINT8"))
    return weight if order == "nk" else body.op("Transpose", weight, perm=[1, 0])


def vq_scales(body: Body, form: VqForm) -> str:
    """What codewords are multiplied with, float32 in the shape of `scales`."""
    scales = body.cast("scales", "FLOAT") if form.half_scales else "scales"
    if not form.folded:
        return scales
    return body.op("Mul", scales, body.op("Div", _largest(body, form), body.scalar(PANEL_MAX)))


def _rows(body: Body, form: VqForm, codebook: str) -> str:
    """Codewords in the places of their codes, `[n, k]`."""
    vectors = body.op("Gather", codebook, body.cast(_codes(body, form), "INT32"))  # Gather takes no bytes
    rows = body.op("Flatten", vectors, axis=1)
    return first(body, rows, form.k, 1) if form.k else rows


def _codes(body: Body, form: VqForm) -> str:
    """The codes as uint8, one element each, output channels first."""
    packed = body.guarded("codes", 2)
    if form.bits == 8:
        return packed
    stream = WeightForm(form.bits, "channel", block=form.vectors)
    codes = unpack_blocks(body, stream, body.op("Unsqueeze", packed, body.ints(1)), "kn")
    # Shifts run over contiguous channels; turning the few bytes round afterwards costs less than unpacking along rows.
    return body.op("Transpose", body.op("Flatten", codes.name, axis=codes.positions + 1), perm=[1, 0])


def _codewords(body: Body, form: VqForm) -> str:
    """The codebook, float32, folded as `vq_reference.fold_codebook` does it, operation by operation."""
    if not form.folded:
        return _stored(body, form)
    factor = body.op("Div", body.scalar(PANEL_MAX), _largest(body, form))
    return body.op("Round", body.op("Mul", _stored(body, form), factor))


def _largest(body: Body, form: VqForm) -> str:
    largest = body.op("ReduceMax", body.op("Abs", _stored(body, form)), keepdims=0)
    return body.op("Max", largest, body.scalar(SMALLEST_LARGEST))


def _stored(body: Body, form: VqForm) -> str:
    return body.cast("codebook", "FLOAT") if form.codebook != "float32" else "codebook"
