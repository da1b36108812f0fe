"""ONNX of a denoiser: low-bit operators of our own, each with a function that computes it in standard ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from torch import nn

from compress.errors import ExportError, OutputError
from compress.export.functions import Embedded, check_functions, embed_functions, make_anonymous
from compress.export.fusions import fuse as fuse_operators
from compress.export.manifest import describe, write_companions
from compress.export.stock import LayerNote, inline_stock
from compress.export.trace import OUTPUT, Traced, quiet_exporter, trace_denoiser
from compress.kernels.onnx_functions import OPSETS
from compress.models.adapter import Adapter

MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"
EXTERNAL_ABOVE: Final = 2**31 - 2**26
"""Bytes of weights from which they go to a file of their own: a protobuf holds less than 2 GiB, graph included."""
OPERATOR_SETS: Final = ("compress", "stock")
_INLINE_BELOW = 1024  # onnxruntime must find small tensors (shapes) in the model file itself

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the model file.
        functions: overload names of the embedded functions, sorted.
        nodes_by_operator: nodes of our domain by ONNX name; with stock operators, layers by what multiplies in them.
        bytes: of the model file, and the data file if there is one.
        fused: how often each rule of `fusions.RULES` was used; empty when the export did not fuse.
        layers: with stock operators, what each layer became; else empty.
    """

    path: Path
    functions: tuple[str, ...]
    nodes_by_operator: dict[str, int]
    bytes: int
    fused: dict[str, int] = field(default_factory=dict)
    layers: tuple[LayerNote, ...] = ()


def export_denoiser(
    adapter: Adapter,
    model: nn.Module,
    path: Path | str,
    *,
    opset: int = 21,
    operators: str = "compress",
    fuse: bool = True,
    progress: Progress | None = None,
    external_above: int = EXTERNAL_ABOVE,
) -> ExportResult:
    """Write `model.onnx`, `export.json` and `scheduler_config.json` into the folder `path`; equal input, equal bytes.

    Inputs of the file are `sample` `[batch, c, h, w]`, `timestep` `[batch]` and the conditions in alphabetic order, its
    output is `prediction` (learned sigmas cut off). Height and width are the model's native ones. Layers that call
    `torch.ops.compress` become nodes of domain `compress`, or with `operators` "stock" what a stock onnxruntime has for
    them (see `stock.py`); everything else becomes standard ONNX. Weights of more than `external_above` bytes go to
    `model.onnx.data`. With `fuse`, what surrounds those nodes moves into them. `progress` is told what happens.

    Raises:
        ExportError: torch cannot trace the model, a layer has no ONNX form, or the result is not valid ONNX.
        OutputError: the folder cannot be written.
    """
    tell = progress or (lambda message: None)
    _check(model, opset, operators)
    tell("tracing")
    traced = trace_denoiser(adapter, model)
    tell("translating to ONNX")
    graph = _translate(traced, opset)
    fused = fuse_operators(graph) if fuse else {}
    embedded, layers = inline_stock(graph, opset) if operators == "stock" else (embed_functions(graph, opset), ())
    _check_extents(graph)
    make_anonymous(graph)
    facts = describe(adapter, traced, opset=opset, operators=operators) | {"fused": fused}
    if operators == "stock":
        facts |= {"function_domain": {}, "layers": [note.as_dict() for note in layers]}
    graph.producer_name, graph.producer_version = "compress", metadata.version("compress")
    graph.metadata_props["compress"] = json.dumps(facts, sort_keys=True)
    tell("writing")
    return replace(_write(adapter, graph, facts, embedded, Path(path), external_above), fused=fused, layers=layers)


def _check(model: nn.Module, opset: int, operators: str) -> None:
    if operators not in OPERATOR_SETS:
        raise ExportError(f"operators {operators!r} cannot be exported", hint=f"use {' or '.join(OPERATOR_SETS)}")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset {opset} is not supported", hint=f"use {OPSETS[0]} to {OPSETS[1]}")
    if model.training:
        raise ExportError("the model is in training mode", hint="call model.eval()")


def _translate(traced: Traced, opset: int) -> Any:
    """The program as an `onnx_ir.Model`."""
    import torch

    from compress.export.translations import translations

    with quiet_exporter():
        program = torch.onnx.export(
            traced.program,
            (),
            dynamo=True,
            opset_version=opset,
            custom_translation_table=translations(),
            dynamic_shapes=traced.shapes,
            input_names=list(traced.names),
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None, "with dynamo=True the exporter returns a program"
    return program.model


def _check_extents(graph: Any) -> None:
    """Only the batch is free: torch may fix an extent, or free another, without a word."""
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        first, *others = list(value.shape)
        name = getattr(first, "value", first)
        if not isinstance(name, str) or name.isdigit() or not all(isinstance(extent, int) for extent in others):
            raise ExportError(f"{value.name} came out with the shape {list(value.shape)}", hint="please report this")


def _write(
    adapter: Adapter, graph: Any, facts: dict[str, Any], embedded: Embedded, folder: Path, external_above: int
) -> ExportResult:
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    file, data = folder / MODEL_FILE, folder / DATA_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.unlink(missing_ok=True)
        if weights > external_above:
            onnx_ir.save(graph, file, external_data=DATA_FILE, size_threshold_bytes=_INLINE_BELOW)
        else:
            onnx_ir.save(graph, file)
        write_companions(adapter, facts, folder)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}", where=str(folder), hint="check space and rights"
        ) from error
    _check_file(file)
    written = file.stat().st_size + (data.stat().st_size if data.exists() else 0)
    return ExportResult(file, embedded.functions, embedded.nodes_by_operator, written)


def _check_file(file: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"not valid ONNX: {reason}", where=str(file), hint="please report this model") from error
    check_functions(onnx.load(str(file), load_external_data=False))
