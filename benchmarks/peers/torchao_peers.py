"""torchao: int8 weights with activations quantized per token when it runs, compiled as its documentation advises."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.base import Bind, Call, Layer, Provider, Run


def _int8(layer: Layer) -> Bind:
    logging.getLogger("torchao").setLevel(logging.ERROR)
    quantization: Any = importlib.import_module("torchao.quantization")
    linear = nn.Linear(layer.k, layer.n, bias=False)
    linear.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    model = nn.Sequential(linear).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(model, dynamic=True)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y: Tensor = compiled(x)
        return y

    def bind(x: Tensor) -> Run:
        return Call(lambda: run(x))

    return bind


MATMUL = (
    Provider(
        "torchao_int8",
        "matmul",
        "int8",
        0,
        "dynamic",
        _int8,
        0.03,
        packages=("torchao",),
        note="torch.compile with dynamic shapes; OpenMP threads of torch",
        slow_build=True,
    ),
)
