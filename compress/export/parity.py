"""Whether an exported denoiser computes what its checkpoint computes (ARCHITECTURE section 4, "Parity, defined once").

Two measures. (a) Every operator call of one torch forward is run again, on the very same input, as the embedded
function in a stock onnxruntime session: at most 1e-5 apart. (b) One forward of the whole exported file: at most half of
the model's own quantization noise apart. Free-running models cannot be held to (a), since one rounding that falls the
other way changes every later layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import ExportError
from compress.export.manifest import read_manifest
from compress.export.session import OnnxDenoiser, open_session
from compress.kernels.onnx_single import single_node_model
from compress.kernels.schema import OPERATORS, Operator
from compress.models.adapter import Adapter, DenoiserInputs

OPERATOR_LIMIT: Final = 1e-5
NOISE_SHARE: Final = 0.5


@dataclass(frozen=True)
class OperatorParity:
    """One operator call: the layer's name, the ONNX operator, and ||onnx - torch|| / ||torch|| of its output."""

    layer: str
    operator: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= OPERATOR_LIMIT


@dataclass(frozen=True)
class Parity:
    """Agreement of an exported file with its checkpoint.

    Attributes:
        operators: every operator call of the forward, in order.
        onnx_error: ||onnx - checkpoint|| / ||checkpoint|| of one forward.
        quantization_noise: ||checkpoint - original|| / ||original|| on the same inputs; None without an original.
    """

    operators: tuple[OperatorParity, ...]
    onnx_error: float
    quantization_noise: float | None

    @property
    def worst_operator(self) -> OperatorParity | None:
        """The call that is furthest apart; None for a model without operators of ours."""
        return max(self.operators, key=lambda call: call.error, default=None)

    @property
    def limit(self) -> float | None:
        """What `onnx_error` may be; None without an original to compare with."""
        return None if self.quantization_noise is None else NOISE_SHARE * self.quantization_noise

    @property
    def passed(self) -> bool:
        """Whether every measure keeps its limit."""
        return all(call.passed for call in self.operators) and (self.limit is None or self.onnx_error <= self.limit)


def check_parity(
    adapter: Adapter,
    model: nn.Module,
    folder: Path | str,
    inputs: DenoiserInputs,
    *,
    original: nn.Module | None = None,
    threads: int | None = None,
) -> Parity:
    """Compare the exported `folder` with the checkpoint's `model` on one batch, best taken from a sampler's trajectory.

    `original` is the model before compression. Memory: one layer more than a forward, at a time.

    Raises:
        ExportError: the folder is not an export, or a layer has no ONNX form.
    """
    opset = int(read_manifest(Path(folder))["opset"])
    calls: list[OperatorParity] = []

    def compare(layer: str, call: _Call, y: Tensor) -> None:
        found = _run_single(layer, call, opset, threads)
        calls.append(OperatorParity(layer, call.operator.onnx_name, relative_error(found, y)))

    with torch.no_grad(), _layer_names(model) as current, _recorder(current, compare):
        expected = adapter.denoise(model, *inputs)
    found = OnnxDenoiser(folder, threads=threads)(*inputs)
    noise = None
    if original is not None:
        with torch.no_grad():
            reference = adapter.denoise(original, *inputs)
        noise = relative_error(expected, reference)
    return Parity(tuple(calls), relative_error(found, expected), noise)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; 0 when both are zero."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


class _Call(NamedTuple):
    """One operator call: present tensors and given attributes by name."""

    operator: Operator
    tensors: dict[str, Tensor]
    attributes: dict[str, Any]


def _run_single(layer: str, call: _Call, opset: int, threads: int | None) -> Tensor:
    """The call's function in a stock session with default options, as the exported file would run it."""
    try:
        model = single_node_model(call.operator, call.tensors, call.attributes, opset)
    except ExportError as error:
        raise ExportError(error.message, where=layer, hint=error.hint) from error
    session = open_session(model.SerializeToString(), threads=threads)
    (y,) = session.run(None, {"x": call.tensors["x"].detach().cpu().contiguous().numpy()})
    return torch.from_numpy(y)


def _recorder(current: list[str], compare: Callable[[str, _Call, Tensor], None]) -> Any:
    """A context in which `compare(layer, call, output)` follows each call of our operators."""
    operators = {getattr(torch.ops.compress, o.name).default: o for o in OPERATORS}

    def dispatch(self: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        operator = operators.get(function)
        if operator is not None:
            names = [tensor.name for tensor in operator.inputs]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            tensors = {name: given[name] for name in names if given.get(name) is not None}
            attributes = {a.name: given[a.name] for a in operator.attributes if a.name in given}
            compare(current[-1], _Call(operator, tensors, attributes), output)
        return output

    # Made by `type` because torch leaves the methods of its class without annotations.
    return type("Recorder", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})()


@contextmanager
def _layer_names(model: nn.Module) -> Iterator[list[str]]:
    """A stack whose last entry is the name of the module that is running."""
    stack = [""]

    def enter(name: str) -> Any:
        return lambda module, args: stack.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
