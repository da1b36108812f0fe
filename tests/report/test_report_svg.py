"""Axes, marks and charts."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from compress.report.bars import Bar, Part, bar_chart
from compress.report.plots import Guide, Point, Series, xy_chart
from compress.report.svg import MARKERS, Axis, canvas, element, marker, text, tip

SVG = "{http://www.w3.org/2000/svg}"


def test_elements_escape_their_text_and_attributes() -> None:
    drawn = element("g", *tip("<&>"), text("</text><script>", 1, 2.5), css='a"b', aria_label=None)
    root = ElementTree.fromstring(drawn)
    assert root.attrib == {"class": 'a"b'}
    assert root[0].text == "<&>" and root[1].text == "</text><script>"
    assert root[1].get("y") == "2.5"


@pytest.mark.parametrize("shape", MARKERS)
def test_markers_are_centred(shape: str) -> None:
    root = ElementTree.fromstring(marker(shape, 10, 20, 5))
    if root.tag == "polygon":
        corners = [tuple(map(float, pair.split(","))) for pair in root.attrib["points"].split()]
        assert sum(x for x, _ in corners) / len(corners) == pytest.approx(10, abs=0.02)
        assert sum(y for _, y in corners) / len(corners) == pytest.approx(20, abs=0.02)
    elif root.tag == "circle":
        assert (root.get("cx"), root.get("cy")) == ("10", "20")
    else:
        assert float(root.attrib["x"]) + float(root.attrib["width"]) / 2 == 10


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-9, 2e-9], [-5.0, 5.0], [0.97, 0.98], [1.0, 1e6]])
@pytest.mark.parametrize("zero", [False, True])
def test_linear_ticks_lie_on_the_axis_and_are_few(values: list[float], zero: bool) -> None:
    axis = Axis.covering("x", [*values, math.nan, math.inf], zero=zero)
    assert axis is not None and axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert len({words for _, words in ticks}) == len(ticks)
    span = axis.high - axis.low
    assert all(axis.low - 1e-9 * span <= value <= axis.high + 1e-9 * span for value, _ in ticks)
    assert (axis.low == 0) == (zero and min(values) >= 0) or min(values) < 0


@pytest.mark.parametrize("values", [[1.0], [0.01, 150.0], [1e-13, 1e-2], [2.1, 2.9], [1.0, 12.0]])
def test_logarithmic_ticks(values: list[float]) -> None:
    axis = Axis.covering("sigma", values, log=True)
    assert axis is not None and axis.log
    assert 2 <= len(axis.ticks()) <= 9
    middle = math.sqrt(axis.low * axis.high)
    assert axis.place(middle) == pytest.approx(0.5)
    assert (axis.place(axis.low), axis.place(axis.high), axis.place(0.0)) == (0.0, 1.0, 0.0)


def test_a_logarithmic_axis_falls_back_where_values_are_not_positive() -> None:
    axis = Axis.covering("x", [0.0, 1.0], log=True)
    assert axis is not None and not axis.log
    assert Axis.covering("x", [math.nan], log=True) is None


def test_far_powers_of_ten_are_written_as_such() -> None:
    axis = Axis.covering("x", [1e-13, 1e-2], log=True)
    assert axis is not None
    assert "10⁻¹²" in {words for _, words in axis.ticks(12)}


def drawn_chart(points: list[Point]) -> ElementTree.Element:
    axes = Axis("x <unit>", 0.0, 10.0), Axis("y", 0.0, 1.0)
    series = [Series("one", "ink-1", points, joined=True)]
    svg = xy_chart(
        "a & b", series, axes, guides=[Guide("x", 5, "gate"), Guide("y", 0.5, "g")], staircase=[(1, 0), (2, 1)]
    )
    return ElementTree.fromstring(svg)


def test_chart_draws_finite_points_with_tooltips() -> None:
    points = [Point(1, 0.2, 0.1, 0.3, 0.5, 1.5, label="first", tip="<tip>"), Point(math.nan, 0.5), Point(9, 0.9)]
    root = drawn_chart(points)
    assert root.get("aria-label") == "a & b"
    assert len(root.findall(f".//{SVG}circle")) == 2
    assert [title.text for title in root.iter(f"{SVG}title")] == ["<tip>"]
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "guide"]) == 2
    assert {"whisker", "extent"} <= {line.get("class") for line in root.iter(f"{SVG}line")}
    assert "first" in [label.text for label in root.iter(f"{SVG}text")]


def test_crowded_labels_do_not_lie_on_each_other() -> None:
    points = [Point(5, 0.5, label="aaaa"), Point(5.05, 0.5, label="bbbb"), Point(5, 0.52, label="cccc")]
    labels = [e for e in drawn_chart(points).iter(f"{SVG}text") if e.get("class") == "point-label"]
    places = [(float(label.attrib["x"]), float(label.attrib["y"]), label.get("text-anchor")) for label in labels]
    assert len(places) == 3
    starts = [x - 32 * {"start": 0, "middle": 0.5, "end": 1}[str(anchor)] for x, _, anchor in places]
    for i in range(3):
        for j in range(i):
            apart = abs(starts[i] - starts[j]) >= 32 or abs(places[i][1] - places[j][1]) >= 14
            assert apart, f"{places[i]} and {places[j]}"


def test_bars_share_a_scale_and_leave_out_nothing_positive() -> None:
    bars = [
        Bar("a", "4", [Part("p", "ink-1", 3.0, "p 3"), Part("q", "ink-2", 1.0, ""), Part("none", "ink-3", 0.0, "")]),
        Bar("b", "2", [Part("p", "ink-1", 2.0, "")], low=1.5, high=8.0),
    ]
    root = ElementTree.fromstring(bar_chart("bars", bars))
    widths = [float(r.attrib["width"]) for r in root.iter(f"{SVG}rect") if "segment" in str(r.get("class"))]
    assert widths == [pytest.approx(520 * value / 8, abs=0.01) for value in (3.0, 1.0, 2.0)]
    assert len([line for line in root.iter(f"{SVG}line")]) == 3


def test_empty_bars_draw_only_names() -> None:
    root = ElementTree.fromstring(bar_chart("none", [Bar("a", "0")]))
    assert [e.text for e in root.iter(f"{SVG}text")] == ["a", "0"]


def test_a_canvas_names_itself_for_screen_readers() -> None:
    root = ElementTree.fromstring(canvas(10, 20, "what & why", ["<g/>"]))
    assert (root.get("role"), root.get("aria-label"), root.get("viewBox")) == ("img", "what & why", "0 0 10 20")
