"""Runs randomly damaged models with our library: `onnx_mutations.py SEED COUNT` prints how many it refused and ran.

A process of its own for test_onnx_kernels.py: what must not happen is that it ends otherwise.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from test_onnx_kernels import CALLS, node_model, session

NUMBERS = [0, -1, 1, 2, 3, 7, 9, 64, 255, 2**31, 2**62, -(2**63), 2**63 - 1]
TEXTS = [b"", b"int8", b"folded", b"none", b"uint4", b"\xff\xfe", b"x" * 1000, b"fp8_e4m3", b"silu"]
TYPES = [1, 2, 3, 7, 10, 11, 17]


def change_attribute(model: Any, rng: random.Random) -> None:
    attribute = rng.choice(model.graph.node[0].attribute)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        if rng.random() < 0.3:
            attribute.ints.append(1)
    else:
        attribute.s = rng.choice(TEXTS)


def drop_attribute(model: Any, rng: random.Random) -> None:
    del model.graph.node[0].attribute[rng.randrange(len(model.graph.node[0].attribute))]


def replace_tensor(model: Any, rng: random.Random) -> None:
    """Another extent, another type, or both; random bytes."""
    tensor = rng.choice(model.graph.initializer)
    kind, shape = rng.choice([tensor.data_type, rng.choice(TYPES)]), list(tensor.dims)
    if shape and rng.random() < 0.7:
        axis = rng.randrange(len(shape))
        shape[axis] = rng.choice([0, 1, max(shape[axis] - 1, 0), shape[axis] + 1, 2 * shape[axis]])
    size = int(np.prod(shape, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=kind, dims=shape, raw_data=rng.randbytes(size)))


def drop_input(model: Any, rng: random.Random) -> None:
    model.graph.node[0].input[rng.randrange(1, len(model.graph.node[0].input))] = ""


def swap_inputs(model: Any, rng: random.Random) -> None:
    names = model.graph.node[0].input
    i, j = rng.randrange(1, len(names)), rng.randrange(1, len(names))
    names[i], names[j] = names[j], names[i]


def free_tensor(model: Any, rng: random.Random) -> None:
    """An input of the graph with a default, instead of a constant."""
    tensor = rng.choice(model.graph.initializer)
    if tensor.name not in [value.name for value in model.graph.input]:
        shape = [f"{tensor.name}{axis}" for axis in range(len(tensor.dims))]
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))


def forget_shape(model: Any, rng: random.Random) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


MUTATIONS = [change_attribute, drop_attribute, replace_tensor, drop_input, swap_inputs, free_tensor, forget_shape]


def feeds_of(model: Any, x: Any, rng: random.Random) -> dict[str, Any]:
    feeds = {"x": x.numpy()[..., : rng.randrange(x.shape[-1])] if rng.random() < 0.2 else x.numpy()}
    if rng.random() < 0.1:
        feeds["x"] = feeds["x"][:0]
    for value in model.graph.input[1:]:
        if rng.random() < 0.5 and value.type.tensor_type.elem_type != TensorProto.FLOAT8E4M3FN:
            tensor = next(t for t in model.graph.initializer if t.name == value.name)
            array = numpy_helper.to_array(tensor)
            feeds[value.name] = array[..., :-1].copy() if array.ndim and rng.random() < 0.5 else array
    return feeds


def main(seed: int, count: int) -> None:
    rng, refused, computed = random.Random(seed), 0, 0
    calls = list(CALLS.values())
    for _ in range(count):
        operator, x, arguments = rng.choice(calls)
        model = node_model(operator, x, arguments)
        for _ in range(rng.choice([1, 1, 2, 3])):
            if len(model.graph.node[0].attribute):
                rng.choice(MUTATIONS)(model, rng)
        try:
            session(model, rng.choice([1, 2, 3])).run(None, feeds_of(model, x, rng))
            computed += 1
        except Exception:  # pybind types without a common base; crashes are none of them
            refused += 1
    print(refused, computed)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
