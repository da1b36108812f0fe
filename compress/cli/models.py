"""`compress inspect | sample | evaluate | export`: commands on a model or an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli.console import count_text, print_json, size_text, text_table

if TYPE_CHECKING:
    from compress.models.inspect import Inspection

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Artefact = Annotated[str, typer.Argument(help="A checkpoint folder, an ONNX folder, or any model source.")]


def inspect(
    model: Annotated[str, typer.Argument(help="zoo://NAME, a folder in diffusers layout, or hf://org/name")],
    json: Json = False,
) -> int:
    """Blocks, layer roles, parameters, bytes and MACs of a model; loads no weights."""
    from compress.checkpoint.quantizer import register
    from compress.models.inspect import inspect_model
    from compress.models.source import open_adapter, resolve

    register()
    found = inspect_model(open_adapter(resolve(model)))
    if json:
        from dataclasses import asdict

        print_json(asdict(found))
    else:
        _print_inspection(found)
    return 0


def _print_inspection(found: Inspection) -> None:
    rows = [
        (
            facts.info.name,
            facts.role_text,
            "x".join(map(str, facts.info.weight_shape)),
            count_text(facts.parameters),
            count_text(facts.macs),
        )
        for facts in found.layers
    ]
    print(text_table(["layer", "role", "shape", "parameters", "MACs"], rows, right=(3, 4)))
    blocks = [(b.name, b.kind, b.layers, count_text(b.parameters), count_text(b.macs)) for b in found.blocks]
    print("\n" + text_table(["block", "kind", "layers", "parameters", "MACs"], blocks, right=(2, 3, 4)))
    disk = "no weights here" if found.bytes_on_disk is None else f"{size_text(found.bytes_on_disk)} on disk"
    shape = "x".join(map(str, found.sample_shape))
    print(
        f"\n{found.model}: {found.denoiser_class} ({found.family} family), sample {shape}\n"
        f"{count_text(found.parameters)} parameters ({count_text(found.other_parameters)} outside layers), "
        f"{size_text(found.bytes_float32)} in fp32, {size_text(found.bytes_float16)} in fp16, {disk}\n"
        f"{count_text(found.macs)} MACs a forward, {count_text(found.attention_macs)} of them inside attention"
    )


def sample(
    artefact: Artefact,
    output: Annotated[Path, typer.Option("--output", help="PNG file to write.")] = Path("samples.png"),
    classes: Annotated[str | None, typer.Option("--classes", help="Class labels, e.g. 0,1,2; all by default.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Images.")] = 20,
    sampler: Annotated[str, typer.Option("--sampler", help="Scheduler by its short name.")] = "ddim",
    steps: Annotated[int, typer.Option("--steps", min=1)] = 20,
    guidance: Annotated[float | None, typer.Option("--guidance", min=0, help="1.5 for classes, else none.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> int:
    """Draw images from a checkpoint, an ONNX folder or a model."""
    from compress.engine.artefact import SampleRequest, draw_grid

    draw_grid(artefact, SampleRequest(sampler, steps, guidance, count, seed, _labels(classes)), output)
    print(f"{count} images: {output}")
    return 0


def _labels(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"`{text}` is no list of class numbers", param_hint="--classes") from None


def evaluate(
    artefact: Annotated[Path, typer.Argument(help="A checkpoint folder, or the output folder of a run.")],
    reference: Annotated[str, typer.Option("--reference", help="The original model.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the report.")] = Path("evaluation"),
    n: Annotated[int, typer.Option("--n", min=16, help="Images.")] = 256,
    json: Json = False,
) -> int:
    """Measure a checkpoint (and its ONNX, when it lies beside it) against the original model, and write a report."""
    from compress.engine.artefact import evaluate_artefact
    from compress.report.compare import compare as compare_reports
    from compress.report.text import comparison_text

    report = evaluate_artefact(artefact, reference, output, n, quiet=json)
    if json:
        print_json(report.model_dump(mode="json", exclude={"figures"}))
    else:
        print(comparison_text(compare_reports([report])))
        print(f"report: {output / 'report' / 'report.html'}")
    return 0


def export(
    artefact: Annotated[str, typer.Argument(help="A checkpoint folder, or any model source.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the ONNX model.")] = Path("onnx"),
    opset: Annotated[int, typer.Option("--opset", min=21, max=25)] = 21,
    operators: Annotated[
        str, typer.Option("--operators", help="compress, or stock: only what a stock onnxruntime has.")
    ] = "compress",
) -> int:
    """Write ONNX of a checkpoint's denoiser: low-bit operators with their meaning embedded, or stock operators."""
    from compress.engine.artefact import export_artefact

    result = export_artefact(artefact, output, opset, operators)
    nodes = ", ".join(f"{count} {name}" for name, count in result.nodes_by_operator.items())
    print(f"{result.path}: {size_text(result.bytes)}, {nodes}")
    return 0
