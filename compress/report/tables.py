"""Tables that the renderers know how to draw, built so that producers need not know their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from compress.report.model import Artefact, Table

ARTEFACTS: tuple[Artefact, ...] = get_args(Artefact)


def bytes_table(sizes: Mapping[Artefact, Mapping[str, int]], note: str = "") -> Table:
    """Bytes by tensor class (codes, scales, biases, …), a column an artefact, the largest class first."""
    present = [artefact for artefact in ARTEFACTS if artefact in sizes]
    classes = dict.fromkeys(name for artefact in present for name in sizes[artefact])
    order = sorted(classes, key=lambda name: -max(sizes[artefact].get(name, 0) for artefact in present))
    rows: list[list[str | float | int | None]] = [
        [name, *(sizes[artefact].get(name) for artefact in present)] for name in order
    ]
    return Table(kind="bytes", title="Bytes by tensor class", columns=["tensor class", *present], rows=rows, note=note)
