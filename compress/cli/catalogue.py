"""`compress methods | formats | zoo | schema`: what there is."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from compress.cli.console import print_json, text_table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def methods(json: Json = False) -> None:
    """Compression methods, with their citations."""
    from compress.prune.methods import block_influence
    from compress.quantize.methods import METHODS

    rows = [("quantize", m.name, m.summary, m.citation) for m in METHODS.values()]
    rows.append(
        ("prune", "block_influence", "Removes the blocks that change their input least.", block_influence.CITATION)
    )
    if json:
        return print_json([dict(zip(("stage", "name", "summary", "citation"), row, strict=True)) for row in rows])
    for stage, name, summary, citation in rows:
        print(f"{name} ({stage})\n  {summary}\n  {citation}")
    return None


def formats(json: Json = False) -> None:
    """Number formats, and the kernels this machine has for them."""
    from compress.formats import FORMATS
    from compress.kernels import cpu_library
    from compress.kernels.backends import ENVIRONMENT, candidates, cpu_is_chosen

    rows = [
        (f.name, f.bits, f.kind, f"{f.max_value:g}", "any" if f.layout is None else f.layout.describe(), f.citation)
        for f in FORMATS.values()
        if f.signed
    ]
    if json:
        names = ("name", "bits", "kind", "largest", "blocks", "citation")
        return print_json([dict(zip(names, row, strict=True)) for row in rows])
    print(text_table(["format", "bits", "kind", "largest", "blocks", "defined in"], rows, right=(1, 3)))
    library = cpu_library.library()
    asked = candidates()
    forced = os.environ.get(ENVIRONMENT)
    able = [backend.name for backend in asked if library or backend.name != "cpu"]
    print(f"\nkernels{f' with {ENVIRONMENT}={forced}' if forced else ''}, fastest first: {', '.join(able)}")
    if library is None:
        print(cpu_library.announcement())
    else:
        used = library.isa if cpu_is_chosen() else ""
        isas = (f"{isa} (in use)" if isa == used else isa for isa in library.isas)
        print(f"instruction sets of cpu: {', '.join(isas)}")
    return None


def zoo(json: Json = False) -> None:
    """Bundled models: `model: {source: zoo://NAME}`, and the variants made of them on the fly."""
    from compress.models.zoo import ZOO
    from compress.models.zoo.stress import STRESSES

    rows = [(f"zoo://{entry.name}", entry.title, entry.licence) for entry in ZOO.values()]
    variants = [
        (f"zoo://{entry.name}?stress={stress}", f"The same function: {title}", entry.licence)
        for entry in ZOO.values()
        if "stress" in entry.options
        for stress, (title, _) in STRESSES.items()
    ]
    if json:
        return print_json([dict(zip(("source", "title", "licence"), row, strict=True)) for row in rows + variants])
    print(text_table(["source", "model", "licence"], rows + variants))
    return None


def schema() -> None:
    """JSON Schema of the recipe, for editors."""
    from compress.recipe.model import Recipe
    from compress.recipe.schema import json_schema

    print_json(json_schema(Recipe))
