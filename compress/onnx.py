"""Public face for ONNX: `compress.onnx.session(path)` opens an exported model.

    import compress.onnx

    session = compress.onnx.session("runs/digits-dit-w8a8/onnx/transformer")
    prediction, = session.run(None, {"sample": ..., "timestep": ..., "class_labels": ...})

Exported files hold our low-bit operators and, for each, a function in standard ONNX: onnxruntime from 1.27 on runs
them without this package (earlier versions mix up functions of one name). A session from here runs our C++ operators
instead, where this installation has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.export.session import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["session"]


def session(path: Path | str, *, threads: int | None = None, kernels: bool = True) -> InferenceSession:
    """An `onnxruntime.InferenceSession` of a model file, or of the folder that an export wrote.

    `threads` is the number of threads within an operator, onnxruntime's choice when None. `kernels=False` opens a stock
    session, which runs the functions in the file; so does an installation without kernels, which logs it once.

    Raises:
        InputError: there is no such file. ExportError: onnxruntime refuses it. RunError: there are no kernels, and
            COMPRESS_REQUIRE_KERNELS wants them.
    """
    return open_session(path, threads=threads, kernels=kernels)
