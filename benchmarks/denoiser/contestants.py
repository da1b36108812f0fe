"""Who takes part with a whole denoiser: which file, opened by which runtime with which settings."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from compress.errors import InputError

OURS, STOCK = "compress", "compress_stock"


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        provider, format, group, mode: as in the rows of the operators' benchmark.
        artefact: name of its file in `artefacts.MAKERS`; runtime: name in `worker.RUNTIMES`.
        settings: names and values for the runtime. packages: what must be installed.
        timed: takes part in the rounds; False for what is only opened and run once.
    """

    provider: str
    format: str
    group: int
    mode: str
    artefact: str
    runtime: str
    settings: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""
    timed: bool = True

    @property
    def ours(self) -> bool:
        return self.provider == OURS

    @property
    def label(self) -> str:
        """Unique among contestants."""
        if not self.provider.startswith("compress"):
            return self.provider
        return f"{self.provider} {self.format}{f' g{self.group}' if self.group else ''} {self.mode}"

    def missing(self) -> str:
        """Why it cannot take part here; empty when it can."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"{', '.join(absent)} not installed: pip install -e '.[bench]'" if absent else ""


_OV, _NNCF = ("openvino",), ("openvino", "nncf")
_F32, _BF16 = (("INFERENCE_PRECISION_HINT", "f32"),), (("INFERENCE_PRECISION_HINT", "bf16"),)
_INT4, _GROUPED = "compress_int4", "compress_int4_g128"
_STOCK_NOTE = "the same file on onnxruntime without our library: the embedded functions run"

CONTESTANTS = (
    Contestant(OURS, "int4", 0, "exact", _INT4, "compress"),
    Contestant(OURS, "int4", 128, "exact", _GROUPED, "compress"),
    Contestant("ort_fp32", "float32", 0, "float", "onnx_fp32", "onnxruntime"),
    Contestant(
        "ort_nbits4_b128",
        "int4",
        128,
        "dynamic",
        "ort_nbits4_b128",
        "onnxruntime",
        note="onnxruntime's MatMulNBitsQuantizer, accuracy level 4; it leaves Gemm (modulations, embeddings) in float",
    ),
    Contestant("openvino_fp32", "float32", 0, "float", "openvino_fp32", "openvino", _F32, _OV),
    Contestant("openvino_bf16", "bfloat16", 0, "float", "openvino_fp32", "openvino", _BF16, _OV),
    Contestant(
        "openvino_int4_g128",
        "int4",
        128,
        "dynamic",
        "openvino_int4_g128",
        "openvino",
        (*_F32, ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "128")),
        _NNCF,
        "nncf.compress_weights INT4_SYM, all layers; activations int8 per 128 inputs",
    ),
    Contestant(
        "openvino_int8",
        "int8",
        0,
        "static",
        "openvino_int8",
        "openvino",
        _F32,
        _NNCF,
        "nncf.quantize, model type transformer, static activations from three random batches",
    ),
    Contestant(STOCK, "int4", 0, "exact", _INT4, "onnxruntime", note=_STOCK_NOTE, timed=False),
    Contestant(STOCK, "int4", 128, "exact", _GROUPED, "onnxruntime", note=_STOCK_NOTE, timed=False),
)


def contestants(names: Sequence[str] = ()) -> tuple[Contestant, ...]:
    """All, or those of the named providers.

    Raises:
        InputError: a name is nobody's.
    """
    known = list(dict.fromkeys(contestant.provider for contestant in CONTESTANTS))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"providers: {', '.join(known)}"
            raise InputError(f"there is no provider {name!r}", hint=hint)
    return tuple(c for c in CONTESTANTS if not names or c.provider in names)
