"""A builder of ONNX function bodies: names values, shares constants, keeps nodes in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEVER = 2**62  # more elements than any tensor has


class Body:
    """Nodes of one function, in order; every value gets a short name that depends only on the calls made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._zero: str | None = None

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """The name of the output of a new standard node."""
        import onnx

        output = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a tensor constant; equal constants share a node."""
        import onnx

        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=onnx.numpy_helper.from_array(value))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant: axes, shapes, starts."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float, dtype: str = "float32") -> str:
        """A 0-D constant."""
        return self.constant(np.array(value, dtype=dtype))

    def cast(self, value: str, dtype: str) -> str:
        """`value` as another element type, by its name in `onnx.TensorProto` (`FLOAT`, `INT8`, …)."""
        import onnx

        return self.op("Cast", value, to=onnx.TensorProto.DataType.Value(dtype))

    def guarded(self, value: str, rank: int, witness: str = "x") -> str:
        """`value` itself, out of reach of constant folding.

        onnxruntime would otherwise compute everything that depends on weights alone when it opens the model, and keep
        the expanded weights in memory. A reshape to `[0, …] + size(x) // 2**62` copies every extent, costs nothing, and
        depends on the input as far as the optimizer can tell; `tests/kernels/test_onnx_folding.py` watches that.
        """
        if self._zero is None:
            self._zero = self.op("Div", self.op("Size", witness), self.constant(np.array(NEVER, dtype=np.int64)))
        return self.op("Reshape", value, self.op("Add", self.ints(*[0] * rank), self._zero))
