"""Whether an exported denoiser computes what its checkpoint computes (ARCHITECTURE section 4, "Parity, defined once").

Two measures. (a) Every operator call of one torch forward is run again, on the very same input, as the file's own node
(with what was fused into it) by its embedded function in a stock onnxruntime session: at most 1e-5 apart. (b) One
forward of the whole exported file: at most half of the model's own quantization noise apart. Free-running models cannot
be held to (a), since one rounding that falls the other way changes every later layer.

Where our kernels are installed, (a) and (b) are measured a second time with them registered.

A layer whose codes no node of the file holds is a failed call: its error is infinite.

A file of stock operators has no nodes of ours to find again. There (a) compares the recorded call with what it becomes
when it is exported alone, as stock operators; the file's own weights are seen by (b) only, so give an original. Where
stock operators round activations in other groups than the checkpoint (MatMulNBits at accuracy level 4), no call can be
equal: it may be `ROUNDING_SHARE` of what rounding the activations costs the call itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import ExportError
from compress.export.file_nodes import FileNodes
from compress.export.manifest import read_manifest
from compress.export.session import OnnxDenoiser, kernels_available, open_session
from compress.export.stock import LayerNote, stock_model
from compress.kernels.onnx_single import single_node_model
from compress.kernels.schema import OPERATORS, Operator
from compress.models.adapter import Adapter, DenoiserInputs

OPERATOR_LIMIT: Final = 1e-5
NOISE_SHARE: Final = 0.5
ROUNDING_SHARE: Final = 1.5
"""Two roundings of one tensor that know nothing of each other are sqrt(2) apart of what each of them costs."""


@dataclass(frozen=True)
class OperatorParity:
    """One operator call: the layer's name, the ONNX operator, and ||onnx - torch|| / ||torch|| of its output.

    `limit` is what that error may be.
    """

    layer: str
    operator: str
    error: float
    limit: float = OPERATOR_LIMIT

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


@dataclass(frozen=True)
class Parity:
    """Agreement of an exported file with its checkpoint.

    Attributes:
        operators: every operator call of the forward, in order.
        onnx_error: ||onnx - checkpoint|| / ||checkpoint|| of one forward.
        quantization_noise: ||checkpoint - original|| / ||original|| on the same inputs; None without an original.
        kernel_operators: every operator call by our kernels; empty without them.
        kernel_error: `onnx_error` with our kernels; None without them.
    """

    operators: tuple[OperatorParity, ...]
    onnx_error: float
    quantization_noise: float | None
    kernel_operators: tuple[OperatorParity, ...] = ()
    kernel_error: float | None = None

    @property
    def worst_operator(self) -> OperatorParity | None:
        """The call that is furthest apart by its limit; None for a model without operators of ours."""
        return _worst(self.operators)

    @property
    def worst_kernel(self) -> OperatorParity | None:
        """The same with our kernels; None without them."""
        return _worst(self.kernel_operators)

    @property
    def limit(self) -> float | None:
        """What `onnx_error` may be; None without an original to compare with."""
        return None if self.quantization_noise is None else NOISE_SHARE * self.quantization_noise

    @property
    def passed(self) -> bool:
        """Whether every measure keeps its limit."""
        calls = (*self.operators, *self.kernel_operators)
        forwards = (self.onnx_error, self.kernel_error or 0.0)
        return all(call.passed for call in calls) and all(self._keeps_limit(error) for error in forwards)

    def _keeps_limit(self, error: float) -> bool:
        return math.isfinite(error) and (self.limit is None or error <= self.limit)


def _worst(calls: tuple[OperatorParity, ...]) -> OperatorParity | None:
    return max(calls, key=_share_of_limit, default=None)


def _share_of_limit(call: OperatorParity) -> float:
    share = call.error / call.limit
    return math.inf if math.isnan(share) else share


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
    manifest = read_manifest(Path(folder))
    opset, stock = int(manifest["opset"]), manifest["operators"] == "stock"
    calls: list[OperatorParity] = []
    by_kernels: list[OperatorParity] = []
    kernels = not stock and kernels_available()
    nodes = FileNodes(Path(folder))

    def compare(layer: str, call: _Call, y: Tensor) -> None:
        written = nodes.find(call.tensors, y)
        if written is None and not stock:
            absent = OperatorParity(layer, call.operator.onnx_name, math.inf)
            calls.append(absent)
            by_kernels.extend([absent] * kernels)
            return
        if written is not None:
            call, y = _Call(call.operator, written.tensors, written.attributes), written.expected
        single, note = _single_model(layer, call, opset, stock)

        def error(kernels: bool) -> float:
            found = _run_single(single, call, threads, kernels)
            return relative_error(found if written is None else found[..., written.rows], y)

        name, limit = call.operator.onnx_name, OPERATOR_LIMIT
        if note is not None:
            name = f"{name} as {note.operator}"
            limit += 0.0 if note.exact else ROUNDING_SHARE * _rounding_cost(call, y)
        calls.append(OperatorParity(layer, name, error(kernels=False), limit))
        if kernels:
            by_kernels.append(OperatorParity(layer, name, error(kernels=True), limit))

    with torch.no_grad(), _layer_names(model) as current, _recorder(current, compare):
        expected = adapter.denoise(model, *inputs)
    forwards = [
        relative_error(OnnxDenoiser(folder, threads=threads, kernels=registered)(*inputs), expected)
        for registered in ((False, True) if kernels else (False,))
    ]
    noise = None
    if original is not None:
        with torch.no_grad():
            reference = adapter.denoise(original, *inputs)
        noise = relative_error(expected, reference)
    return Parity(tuple(calls), forwards[0], noise, tuple(by_kernels), forwards[1] if kernels else None)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; 0 when both are zero."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


class _Call(NamedTuple):
    """One operator call: present tensors and given attributes by name."""

    operator: Operator
    tensors: dict[str, Tensor]
    attributes: dict[str, Any]


def _single_model(layer: str, call: _Call, opset: int, stock: bool) -> tuple[Any, LayerNote | None]:
    """The call as the exported file would run it: its function, or with `stock` what it becomes there (with a note)."""
    note = None
    try:
        model = single_node_model(call.operator, call.tensors, call.attributes, opset)
        if stock:
            model, (note,) = stock_model(model, opset)
    except ExportError as error:
        raise ExportError(error.message, where=layer, hint=error.hint) from error
    return model, note


def _run_single(model: Any, call: _Call, threads: int | None, kernels: bool) -> Tensor:
    """Output of the call in a session with default options, or one with our kernels."""
    session = open_session(model.SerializeToString(), threads=threads, kernels=kernels)
    (y,) = session.run(None, {"x": call.tensors["x"].detach().cpu().contiguous().numpy()})
    return torch.from_numpy(y)


def _rounding_cost(call: _Call, y: Tensor) -> float:
    """Relative change of the output y when activations are not rounded, nor scales folded."""
    tensors = {name: value for name, value in call.tensors.items() if not name.startswith("act_")}
    attributes = call.attributes | {"act_format": "none", "act_group": 0, "mode": "exact"}
    return relative_error(getattr(torch.ops.compress, call.operator.name)(**tensors, **attributes), y)


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
