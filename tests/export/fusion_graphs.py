"""Small hand-made graphs around our operators, for the tests of fusions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.export.functions import embed_functions
from compress.export.fusions import fuse
from compress.export.graph_edit import constant, get_input, operators_in
from compress.export.session import open_session
from compress.kernels.onnx_ops import complete_attributes
from compress.kernels.schema import DOMAIN, OPERATORS

Array = NDArray[Any]
ROWS = 5
Build = Callable[["Sketch"], None]


class Sketch:
    """A graph in the making; weights are drawn in order from a fixed seed. The free extent is called batch."""

    def __init__(self) -> None:
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.random = np.random.default_rng(0)

    def input(self, name: str, *extents: int | str) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(list(extents)), type=ir.TensorType(ir.DataType.FLOAT))
        self.inputs.append(value)
        return value

    def rows(self, name: str = "x", k: int = 16) -> ir.Value:
        """An input `[batch, ROWS, k]`."""
        return self.input(name, "batch", ROWS, k)

    def constant(self, numbers: Any, name: str | None = None) -> ir.Value:
        array = np.asarray(numbers)
        tensor = ir.tensor(array, name=name or f"c{len(self.initializers)}")
        shape = ir.Shape(array.shape)
        value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def normal(self, *shape: int) -> Array:
        return self.random.standard_normal(shape).astype(np.float32)

    def node(self, op_type: str, *inputs: ir.Value, shape: Any = None, **attributes: Any) -> ir.Value:
        """A standard node; its output has the shape of the input of most axes unless another is given."""
        node = ir.node(op_type, list(inputs), attributes)
        (y,) = node.outputs
        y.name, y.type = f"v{len(self.nodes)}", inputs[0].type
        widest = max((value.shape for value in inputs), key=len)  # type: ignore[arg-type]
        y.shape = ir.Shape(list(widest if shape is None else shape))  # type: ignore[arg-type]
        self.nodes.append(node)
        return y

    def linear(self, x: ir.Value, n: int = 12, *, without: tuple[str, ...] = (), **changes: Any) -> ir.Value:
        """QMatMul with 4-bit codes, a scale for each channel, and dynamic int8 activations.

        Attributes and inputs (by name; arrays become constants) can be changed, `bias` left out by `without`.
        """
        k = int(x.shape[-1])  # type: ignore[index, arg-type]
        settings: dict[str, Any] = {"bits": 4, "block_size": k, "act_format": "int8"}
        settings |= {key: changes.pop(key) for key in list(changes) if key in ("block_size", "act_format", "bits")}
        codes = self.random.integers(0, 256, (n, -(-k // settings["block_size"]), settings["block_size"] // 2))
        tensors = {
            "codes": codes.astype(np.uint8),
            "scales": (0.02 + 0.02 * self.random.random((n, codes.shape[1]))).astype(np.float32),
            "bias": self.normal(n),
        }
        tensors = {name: value for name, value in (tensors | changes).items() if name not in without}
        return self._operator("QMatMul", x, n, [*x.shape[:-1], n], tensors, settings)  # type: ignore[index]

    def convolution(self, x: ir.Value, n: int = 6, *, without: tuple[str, ...] = (), **changes: Any) -> ir.Value:
        """QConv2d, 3x3, padding 1; else as `linear`."""
        k = int(x.shape[1]) * 9  # type: ignore[index, arg-type]
        tensors = {
            "codes": self.random.integers(0, 256, (n, 1, k)).astype(np.uint8),
            "scales": (0.002 + 0.002 * self.random.random((n, 1))).astype(np.float32),
            "bias": self.normal(n),
        }
        tensors = {name: value for name, value in (tensors | changes).items() if name not in without}
        settings = {"bits": 8, "block_size": k, "act_format": "int8", "kernel": [3, 3], "padding": [1, 1]}
        return self._operator("QConv2d", x, n, [x.shape[0], n, *x.shape[2:]], tensors, settings)  # type: ignore[index]

    def _operator(
        self, op_type: str, x: ir.Value, n: int, shape: list[Any], tensors: dict[str, Any], settings: dict[str, Any]
    ) -> ir.Value:
        operator = next(o for o in OPERATORS if o.onnx_name == op_type)
        layer = f"block.layer{len(self.nodes)}"
        values = {"x": x} | {
            name: value if isinstance(value, ir.Value) else self.constant(value, f"{layer}.{name}")
            for name, value in tensors.items()
        }
        inputs = [values.get(tensor.name) for tensor in operator.inputs]
        while inputs[-1] is None:
            inputs.pop()
        node = ir.node(op_type, inputs, complete_attributes(operator, settings), domain=DOMAIN)
        (y,) = node.outputs
        y.name, y.type, y.shape = f"v{len(self.nodes)}", x.type, ir.Shape(shape)
        self.nodes.append(node)
        return y

    def output(self, *values: ir.Value) -> None:
        for value in values:
            # A graph returns the values of nodes of its own, so that fusions up to there stay possible.
            self.outputs.append(self.node("Identity", value))

    def model(self) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 21},
            name="g",
        )
        return ir.Model(graph, ir_version=10)


def built(build: Build) -> ir.Model:
    """The graph that `build` sketches."""
    sketch = Sketch()
    build(sketch)
    return sketch.model()


def fused(build: Build) -> tuple[ir.Model, dict[str, int]]:
    """The fused graph, and the rules that were used."""
    model = built(build)
    counts = fuse(model)
    return model, {rule: count for rule, count in counts.items() if count}


def ops(model: ir.Model) -> list[ir.Node]:
    """Nodes of our domain."""
    return operators_in(model.graph)


def numbers(node: ir.Node, name: str) -> Array:
    """A constant input of an operator node."""
    array = constant(get_input(node, name))
    assert array is not None
    return array


def types(model: ir.Model) -> list[str]:
    """Operator types in order, without the Identity nodes of the outputs."""
    return [node.op_type for node in model.graph if node.op_type != "Identity"]


def run(model: ir.Model, batch: int = 2) -> list[Array]:
    """Outputs of a stock session for random inputs; the model gets its functions."""
    import onnx

    embed_functions(model, 21)
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    random = np.random.default_rng(1)
    shapes = {value.name: [batch, *(value.shape or [])[1:]] for value in model.graph.inputs}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs: list[Array] = open_session(proto.SerializeToString(), threads=1).run(None, feeds)
    return outputs
