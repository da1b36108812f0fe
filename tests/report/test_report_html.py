"""The HTML page: self-contained, complete, escaped, well-formed."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser

import pytest
from sample_report import sample_report, sample_runs

from compress.report.compare import compare
from compress.report.compare_html import comparison_html
from compress.report.html import picture_groups, report_html
from compress.report.model import Figure, GateResult, Report, StageRecord, Table

VOID = {"meta", "link", "br", "img", "rect", "path", "line", "circle", "polygon", "polyline", "input", "hr"}


class Page(HTMLParser):
    """Tags in order with their attributes, ids, text; complains about tags that do not close where they should."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} near {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def empty_report() -> Report:
    return Report(
        name="empty", created="2026-01-01T00:00:00Z", compress_version="0", recipe={}, model={}, machine={}, stages=[],
        metrics=[], tables=[], figures=[], gates=[],
    )  # fmt: skip


@cache
def sample_page() -> str:
    return report_html(sample_report())


@cache
def comparison_page() -> str:
    return comparison_html(compare(sample_runs()))


# Pages are long: assertions below compare booleans, since pytest would take minutes to show how two pages differ.
PAGES: dict[str, Callable[[], str]] = {
    "sample": sample_page,
    "empty": lambda: report_html(empty_report()),
    "comparison": comparison_page,
    "comparison of one": lambda: comparison_html(compare([empty_report()])),
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_anywhere(name: str) -> None:
    html = PAGES[name]()
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on"), f"{tag} has {key}"
            if key == "xmlns":
                continue
            if key in ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"):
                inside = (value or "").startswith(("data:", "#"))
                assert inside, f"{tag} {key}={(value or '')[:80]}"
            elif key not in ("title", "aria-label", "alt", "content"):
                outside = "//" in (value or "")
                assert not outside, f"{tag} {key}={(value or '')[:80]}"
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.S)
    assert len(style) == 1 and "@import" not in style[0] and "url(" not in style[0]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    styled = re.search(r'\sstyle="', html) is not None
    assert not styled, "style attributes would need their own allowance"


@pytest.mark.parametrize("name", PAGES)
def test_ids_are_distinct_and_links_lead_somewhere(name: str) -> None:
    page = Page(PAGES[name]())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_section_is_there() -> None:
    words = Page(sample_page()).words
    for expected in (
        "1 of 4 gates missed",
        "size_ratio of checkpoint is 0.243, above the allowed 0.2",
        "1 warning",
        "4.11\u00d7 smaller",
        "97.3 %",
        "1.83\u00d7 faster",
        "Quality against size",
        "Error of the predicted noise, per noise band",
        "Latency of one denoiser call",
        "Bytes by tensor class",
        "transformer_blocks.5.ff.net.0.proj",
        "Noise floor",
        "class_accuracy by category",
        "quantize · gptq",
        "3 min 07 s",
        "from an earlier run",
        "granularity: group",
        "Intel(R) Xeon(R)",
        "16.8 GB",
    ):
        found = expected in words
        assert found, expected


def test_figures_are_embedded_png() -> None:
    page = Page(sample_page())
    sources = [str(a["src"]) for tag, a in page.tags if tag == "img"]
    assert len(sources) == 3
    assert all(base64.b64decode(s.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG") for s in sources)
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")


def test_charts_have_names_and_tooltips() -> None:
    page = Page(sample_page())
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(charts) == 4 and all(chart.get("aria-label") for chart in charts)
    assert "checkpoint, sigma 0.0115 to 0.0310: 0.031 (95 % CI 0.027 to 0.035), n 256" in page.words


def test_hostile_text_stays_text() -> None:
    evil = "</style></title><script>alert(1)</script>\"'&amp;"
    report = sample_report().model_copy(
        update={
            "name": evil,
            "warnings": [evil],
            "recipe": {evil: {"kind": evil}, "stages": [{"kind": evil, "method": {"kind": evil}}]},
            "model": {"source": evil},
            "machine": {evil: evil},
            "stages": [StageRecord(kind=evil, settings={"a": evil}, seconds=1.0, facts={evil: evil})],
            "tables": [Table(title=evil, columns=[evil], rows=[[evil]], note=evil)],
            "figures": [Figure(group=evil, title=evil, png_base64='"><script>', note=evil)],
            "gates": [GateResult(metric=evil, artefact="onnx", maximum=1.0, value=2.0, passed=False, message=evil)],
            "metrics": [m.model_copy(update={"labels": {k: evil for k in m.labels}}) for m in sample_report().metrics],
        }
    )
    for html in (report_html(report), comparison_html(compare([report, report]))):
        page = Page(html)
        found = "<script" in html
        assert not found
        assert all(tag != "script" for tag, _ in page.tags)
        assert "<script>alert(1)</script>" in page.words


def test_an_empty_report_says_that_nothing_was_judged() -> None:
    words = Page(report_html(empty_report())).words
    assert "No gates were set" in words and "nothing was judged" in words
    assert "Metrics" not in words


def test_met_gates_say_so() -> None:
    report = sample_report()
    gates = [gate for gate in report.gates if gate.passed]
    words = Page(report_html(report.model_copy(update={"gates": gates}))).words
    assert "All 3 gates met" in words


def test_figures_group_by_name_in_order() -> None:
    figures = [
        Figure(title="alone", png_base64="", note="n"),
        Figure(group="g", title="reference", png_base64="", note="same"),
        Figure(group="h", title="x", png_base64=""),
        Figure(group="g", title="other", png_base64="", note="same"),
    ]
    groups = picture_groups(figures)
    assert [(group.name, group.note, [f.title for f in group.figures]) for group in groups] == [
        ("g", "same", ["reference", "other"]),
        ("h", "", ["x"]),
        ("", "n", ["alone"]),
    ]
    assert groups[0].figures[0].key is not None and groups[0].figures[1].key is None


def test_the_same_report_gives_the_same_page() -> None:
    same = report_html(sample_report()) == sample_page()
    assert same


def test_comparison_shows_runs_fronts_and_samples() -> None:
    page = Page(comparison_page())
    for expected in ("6 runs compared", "digits-dit-edge", "size, latency", "Quality against latency", "Missed gates"):
        found = expected in page.words
        assert found, expected
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 7
    labels = [text for text in page.text if text in ("edge", "w8a8", "w4a8-svdquant")]
    assert len(labels) == 6, "labels in both charts leave out what all names share"
