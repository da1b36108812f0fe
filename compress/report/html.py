"""HTML of a report: one file, no script, nothing loaded from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from compress.report.cards import headline_cards
from compress.report.charts import (
    INKS,
    SHAPES,
    Chart,
    Key,
    artefact_keys,
    bytes_chart,
    latency_chart,
    noise_error_chart,
    quality_size_chart,
)
from compress.report.model import Artefact, Figure, Report, StageRecord
from compress.report.numbers import MISSING, fact_texts, seconds_text
from compress.report.sheets import (
    Cell,
    Sheet,
    YamlLine,
    band_sheet,
    breakdown_sheet,
    floor_sheet,
    gate_sheet,
    metric_cells,
    table_sheet,
    yaml_lines,
)
from compress.report.svg import marker
from compress.report.view import (
    artefacts_of,
    bands,
    breakdowns,
    class_bytes,
    floors,
    formats_of,
    main_rows,
    methods_of,
    verdict,
)

if TYPE_CHECKING:
    from jinja2 import Environment


class Picture(NamedTuple):
    """A figure with the legend entry of the artefact it shows, if its title names one."""

    title: str
    png: str
    key: Key | None


class PictureGroup(NamedTuple):
    """Figures that line up as rows; without a name, each stands alone."""

    name: str
    note: str
    figures: list[Picture]


class Row(NamedTuple):
    """A line of the metric table: the name, what it is taken against, a cell an artefact, and what it means."""

    name: str
    against: str
    cells: list[Cell]
    words: str


class Stage(NamedTuple):
    """A stage for people."""

    title: str
    seconds: str
    share: float
    cached: bool
    facts: list[tuple[str, str]]
    settings: list[YamlLine]


def report_html(report: Report) -> str:
    """The whole page."""
    present = artefacts_of(report)
    sheets, details = _sheets(report), _details(report, present)
    context = {
        "report": report,
        "title": f"{report.name} · compress report",
        "version": report.compress_version,
        "facts": _masthead(report),
        "verdict": verdict(report.gates),
        "cards": headline_cards(report),
        "groups": picture_groups(report.figures),
        "charts": _charts(report),
        "artefacts": artefact_keys(present),
        "rows": _rows(report, present),
        "sheets": sheets,
        "details": details,
        "stages": [_stage(stage, max(s.seconds for s in report.stages)) for stage in report.stages],
        "recipe": yaml_lines(report.recipe),
        "model": fact_texts(report.model),
        "machine": fact_texts(report.machine),
    }
    return render("report.html.j2", {**context, "sections": _sections(report, sheets, bool(details))})


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template of this package with everything escaped but the charts, which escape their own text."""
    text: str = _environment().get_template(template).render(context)
    return text


@cache
def _environment() -> Environment:
    """The templates, compiled once: that takes longer than to fill them in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("compress", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup
    environment.filters["bind"] = _bind
    environment.globals["mark"] = lambda shape: Markup(marker(shape, 6, 6, 5))
    return environment


def _bind(words: str) -> str:
    """The words with numbers tied to their units, so that no line ends between them."""
    return re.sub(r"(?<=\d) (?=(?:[kMGT]?B|ms|s|dB|%)(?:\W|$))|(?<=\bn) (?=\d)|(?<=95) (?=%)", "\u00a0", words)


def picture_groups(figures: Sequence[Figure]) -> list[PictureGroup]:
    """Figures by group in the order first seen, those without a group one by one."""
    named: dict[str, list[Figure]] = {}
    groups: list[PictureGroup] = []
    for figure in figures:
        if figure.group:
            named.setdefault(figure.group, []).append(figure)
        else:
            groups.append(PictureGroup("", figure.note, [_picture(figure)]))
    lined_up = [
        PictureGroup(name, "; ".join(dict.fromkeys(f.note for f in members if f.note)), [_picture(f) for f in members])
        for name, members in named.items()
    ]
    return lined_up + groups


def _picture(figure: Figure) -> Picture:
    known = figure.title in INKS
    key = Key(figure.title, INKS[figure.title], SHAPES[figure.title]) if known else None
    return Picture(figure.title, figure.png_base64, key)


def _masthead(report: Report) -> list[tuple[str, str]]:
    weights, activations = formats_of(report.recipe)
    model = report.model.get("source") or report.model.get("name")
    facts = [("model", model), ("stages", methods_of(report.recipe))]
    facts += [("weights", weights), ("activations", activations)] if weights != MISSING else []
    facts.append(("run", report.created.replace("T", " ").removesuffix("+00:00").removesuffix("Z") + " UTC"))
    return [(name, str(value)) for name, value in facts if value]


def _charts(report: Report) -> list[Chart]:
    table = class_bytes(report)
    drawn = (
        quality_size_chart(report),
        noise_error_chart(report),
        latency_chart(report),
        bytes_chart(table) if table else None,
    )
    return [chart for chart in drawn if chart is not None]


def _rows(report: Report, present: Sequence[Artefact]) -> list[Row]:
    arrows = {"lower": "↓ ", "higher": "↑ ", "neutral": ""}
    return [
        Row(
            row.name,
            " ".join(row.labels),
            metric_cells(row.cells, present),
            f"{arrows[row.info.direction]}{row.info.description}",
        )
        for row in main_rows(report)
    ]


def _sheets(report: Report) -> list[Sheet]:
    """The tables that take the page's width: gates and layers."""
    sheets = [gate_sheet(report.gates)] if report.gates else []
    layers = [table_sheet(table) for table in report.tables if table.kind == "layers"]
    return sheets + [sheet._replace(anchor=f"layers-{number}") for number, sheet in enumerate(layers, start=1)]


def _details(report: Report, present: Sequence[Artefact]) -> list[Sheet]:
    """The smaller tables: bands, noise floor, bytes, breakdowns and whatever else the run wrote down."""
    sheets = []
    if found := bands(report):
        sheets.append(band_sheet(found, present))
    if found_floors := floors(report):
        sheets.append(floor_sheet(found_floors))
    table = class_bytes(report)
    sheets += [table_sheet(table)] if table else []
    sheets += [table_sheet(table) for table in report.tables if table.kind not in ("bytes", "layers")]
    return sheets + [breakdown_sheet(found, present) for found in breakdowns(report)]


def _stage(stage: StageRecord, longest: float) -> Stage:
    method = stage.settings.get("method")
    kind = method.get("kind") if isinstance(method, Mapping) else None
    title = f"{stage.kind} · {kind}" if kind else stage.kind
    share = round(100 * stage.seconds / longest, 2) if longest > 0 else 0.0
    facts = fact_texts(stage.facts)
    return Stage(title, seconds_text(stage.seconds), share, stage.cached, facts, yaml_lines(stage.settings))


def _sections(report: Report, sheets: Sequence[Sheet], has_details: bool) -> list[tuple[str, str]]:
    """The page's own links: (anchor, words)."""
    links = [("samples", "Samples")] if report.figures else []
    links += [("charts", "At a glance"), ("metrics", "Metrics")] if report.metrics else []
    links += [(sheet.anchor, sheet.title) for sheet in sheets]
    links += [("details", "Details")] if has_details else []
    links += [("stages", "Stages")] if report.stages else []
    return [*links, ("origin", "Recipe and machine")]
