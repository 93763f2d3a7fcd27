"""Charts of the Inside tab: where their lines lie, what can be read from them, and that labels are no markup."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from ui.inside.laboratory.chart import FOOT, HEIGHT, LEFT, MAX_READINGS, RIGHT, TOP, chart, line, number, ticks


def parsed(drawn: str) -> ElementTree.Element:
    """Return the SVG of a chart; ParseError where it is not well formed."""
    return ElementTree.fromstring(drawn).find("svg")


def readings(svg: ElementTree.Element, shown: str = "at") -> dict[str, list[str]]:
    """Return the values at each place with a reading."""
    groups = [one for one in svg.iter("g") if shown in one.attrib["class"].split()]
    return {one.attrib["data-x"]: [text.text for text in one.iter("text")] for one in groups}


def test_a_chart_without_points_is_nothing_and_one_without_height_is_drawn() -> None:
    assert chart("a", "A title", "step", [line("nothing", []), line("infinite", [(1, math.inf), (2, math.nan)])]) == ""
    assert "nan" not in chart("a", "A title", "step", [line("flat", [(1, 3), (2, 3)])])


def test_lines_reach_from_side_to_side_and_every_point_can_be_read() -> None:
    svg = parsed(
        chart("a", "A title", "step", [line("up", [(1, 0), (2, 10), (3, 20)]), line("one", [(2, 5)])], marker=2)
    )
    corners = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").attrib["points"].split()]
    assert [x for x, _ in corners] == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
    assert corners[0][1] == FOOT
    assert TOP <= corners[-1][1] < TOP + 0.1 * (FOOT - TOP)
    assert readings(svg) == {"1": ["1", "0", "5"], "2": ["2", "10", "5"], "3": ["3", "20", "5"]}
    assert readings(svg, "here") == {"2": ["2", "10", "5"]}
    assert float(svg.attrib["viewBox"].split()[3]) > HEIGHT  # room for the legend


@pytest.mark.parametrize("count", [1, 2, MAX_READINGS, 300])
def test_many_points_have_some_readings_and_the_last_is_one(count: int) -> None:
    svg = parsed(chart("a", "A title", "step", [line("up", [(i, i * i) for i in range(1, count + 1)])]))
    assert len(readings(svg)) == min(count, MAX_READINGS)
    assert {"1", str(count)} <= readings(svg).keys()
    hits = [
        (float(one.attrib["x"]), float(one.attrib["width"])) for one in svg.iter("rect") if one.get("class") == "hit"
    ]
    assert all(width > 0 for _, width in hits)
    for (left, width), (right, _) in pairwise(hits):
        assert left + width == pytest.approx(right, abs=0.11)  # without gaps: numbers are written to a tenth


def test_a_logarithmic_chart_counts_in_powers_of_ten() -> None:
    svg = parsed(chart("a", "A title", "step", [line("falls", [(0, 1000), (1, 1), (2, 0.001)])], log=True))
    labels = [one.text for one in svg.findall("text")]
    assert {"10²", "10⁰", "10⁻²"} <= set(labels)
    ys = [float(pair.split(",")[1]) for pair in svg.find("polyline").attrib["points"].split()]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)


def test_a_zero_stands_at_the_foot_of_a_logarithmic_chart_below_all_powers() -> None:
    svg = parsed(chart("a", "A title", "step", [line("falls", [(0, 1000), (1, 0.002), (2, 0)])], log=True))
    points = svg.find("polyline").attrib["points"].split()
    *_, last, zero = [float(pair.split(",")[1]) for pair in points]
    heights = {
        one.text: float(one.attrib["y"]) for one in svg.findall("text") if one.attrib.get("text-anchor") == "end"
    }
    assert last < zero == FOOT == heights.pop("0") - 4
    assert max(heights.values()) < FOOT
    assert readings(svg)["2"] == ["2", "0"]


def test_a_line_over_another_leaves_gaps_and_the_legend_tells_which_it_is() -> None:
    same = [(1, 1), (2, 2), (3, 3)]
    svg = parsed(chart("a", "A title", "step", [line(name, same) for name in "abc"]))
    lines, swatches = svg.findall("polyline"), [one for one in svg.iter("path") if "swatch" in one.attrib["class"]]
    dashes = [one.attrib.get("stroke-dasharray") for one in lines]
    assert dashes[0] is None
    assert len(set(dashes)) == 3
    assert [one.attrib.get("stroke-dasharray") for one in swatches] == dashes


def test_labels_are_text() -> None:
    drawn = chart("a", "A title", "step", [line("<script>", [(1, 1)])])
    assert "<script" not in drawn
    assert any(text.text == "<script>" for text in parsed(drawn).iter("text"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.7, 0.803), (-4, 3), (1, 20), (0, 999)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    values = ticks(low, high, 4, whole=False)
    assert 2 <= len(values) <= 6
    assert all(
        low - 1e-9 <= value <= high + 1e-9 and re.fullmatch(r"-?\d*\.?\d{0,2}", f"{value:g}") for value in values
    )


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0.12345, 12.345, 1733.2, 0, -0.5)] == ["0.123", "12.3", "1733", "0", "-0.5"]
