"""Charts as SVG: lines over one axis, and below them their values at the marker or at the pointer.

The style sheet shows the reading at the pointer, so that a chart needs no script. Not gr.LinePlot: a chart is part of a
view's own HTML, its marker follows the step that the view plays, and it changes with every step of a run.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, FOOT = 46, 430, 10, 200
"""Sides of the plot, in pixels; below it stand the numbers of the axis and the legend."""
ROW = 21
"""Height of a row of the legend."""
DASHES = ("", "7 5", "2 4", "12 4 2 4", "4 2", "9 3 2 3 2 3", "1 3", "14 6", "5 5 1 5")
"""Dashes of the lines, by their place: where lines lie upon one another, those below show in the gaps."""
MAX_READINGS = 50
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """A line of a chart; its points are finite and in the order of x."""

    label: str
    points: list[tuple[float, float]]


def line(label: str, points: Iterable[Sequence[float]]) -> Line:
    """Return a line through the points whose y is finite."""
    return Line(label, [(x, y) for x, y in points if math.isfinite(y)])


@dataclass(frozen=True)
class Scale:
    """The way from values to pixels on one axis; `low` and `high` of a logarithmic one are powers of ten.

    Zero has no logarithm: it lies at the start of the axis.
    """

    low: float
    high: float
    start: int
    end: int
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log and value == 0:
            return self.start
        share = ((math.log10(value) if self.log else value) - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)


def chart(
    name: str,
    title: str,
    x_label: str,
    lines: Sequence[Line],
    *,
    marker: float | None = None,
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
    right: float | None = None,
) -> str:
    """Return a figure element, or "" where no line has a point.

    title: HTML. marker: the x whose values are shown first, by default the middle. log: a logarithmic y axis, on which
    zeros lie at the foot, below all powers of ten.
    low, high, right: values that the axes reach at least.
    """
    lines = [one for one in lines if one.points]
    if not lines:
        return ""
    xs = [x for one in lines for x, _ in one.points]
    values = [y for one in lines for _, y in one.points]
    ys = [math.log10(y) if log else y for y in values if y or not log]
    ys += [bound for bound in (low, high) if bound is not None]
    has_zero = log and 0 in values
    if has_zero:
        ys.append(math.floor(min(ys, default=0)) - 0.5)
    x_scale = Scale(min(xs), max([*xs, right or 0]), LEFT, RIGHT)
    top = max(ys) + 0.04 * (max(ys) - min(ys))
    y_scale = Scale(min(ys), max(top, min(ys) + 1e-9), FOOT, TOP, log)
    parts = [*axes(x_scale, y_scale)]
    if has_zero:
        parts.append(y_number(FOOT, "0"))
    for i, one in enumerate(lines):
        corners = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in one.points)
        parts.append(f'<polyline class="line c{i}"{dashed(i)} points="{corners}"/>')
    for i, label in enumerate([x_label, *(one.label for one in lines)]):
        left, y = cell(i)
        swatch = f'<path class="line swatch c{i - 1}"{dashed(i - 1)} d="M{left} {y - 5}h26"/>' if i else ""
        parts.append(f'{swatch}<text x="{left + (32 if i else 0)}" y="{y}">{html.escape(label)}</text>')
    parts += readings(x_scale, y_scale, lines, marker)
    height = cell(len(lines))[1] + 8
    return (
        f'<figure class="chart" data-chart="{name}"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(summary(x_label, lines))}">'
        f"{''.join(parts)}</svg></figure>"
    )


def axes(x_scale: Scale, y_scale: Scale) -> Iterable[str]:
    """Yield grid lines with their numbers, and the numbers of the x axis."""
    for value in ticks(y_scale.low, y_scale.high, 5 if y_scale.log else 4, whole=y_scale.log):
        y = y_scale(10**value if y_scale.log else value)
        label = "10" + f"{value:.0f}".translate(SUPERSCRIPTS) if y_scale.log else f"{value:.3g}"
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
        yield y_number(y, label)
    for value in ticks(x_scale.low, x_scale.high, 6, whole=True):
        yield f'<text x="{x_scale(value):.1f}" y="{FOOT + 18}" text-anchor="middle">{value:.0f}</text>'


def y_number(y: float, label: str) -> str:
    """Return a number beside the y axis."""
    return f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def dashed(i: int) -> str:
    """Return the attribute with the dashes of the i-th line: the first is drawn through."""
    dashes = DASHES[i % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def ticks(low: float, high: float, count: int, *, whole: bool) -> list[float]:
    """Return about `count` round values from low to high."""
    rough = (high - low) / count or 1
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    step = max(1, step) if whole else step
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def readings(x_scale: Scale, y_scale: Scale, lines: Sequence[Line], marker: float | None) -> Iterable[str]:
    """Yield the values of all lines at some places, each with the strip of the plot that shows it."""
    longest = max((one.points for one in lines), key=len)
    last = len(longest) - 1
    count = min(last, MAX_READINGS - 1)
    places = [longest[round(i * last / max(1, count))][0] for i in range(count + 1)]
    marker = places[len(places) // 2] if marker is None else marker
    places = sorted({*places, marker})
    edges = [LEFT - 10, *(x_scale((a + b) / 2) for a, b in pairwise(places)), RIGHT + 10]
    for place, start, end in zip(places, edges[:-1], edges[1:], strict=True):
        yield f'<g class="at{" here" if place == marker else ""}" data-x="{place:g}">'
        yield f'<rect class="hit" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{FOOT - TOP}"/>'
        yield f'<path class="rule" d="M{x_scale(place):.1f} {TOP}V{FOOT}"/>'
        yield legend_value(0, f"{place:g}")
        for i, one in enumerate(lines):
            x, y = min(one.points, key=lambda point: abs(point[0] - place))
            yield f'<circle class="dot c{i}" cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="4"/>'
            yield legend_value(i + 1, number(y))
        yield "</g>"


def cell(i: int) -> tuple[int, int]:
    """Return x and y of the i-th text of the legend, which has two columns."""
    return 8 + i % 2 * (WIDTH // 2), FOOT + 22 + ROW * (i // 2 + 1)


def legend_value(i: int, text: str) -> str:
    """Return the text of a value beside the i-th label of the legend."""
    left, y = cell(i)
    return f'<text class="value" x="{left + WIDTH // 2 - 24}" y="{y}" text-anchor="end">{text}</text>'


def summary(x_label: str, lines: Sequence[Line]) -> str:
    """Return a chart in words: the first and the last value of each line."""
    ends = (f"{one.label} from {number(one.points[0][1])} to {number(one.points[-1][1])}" for one in lines)
    return f"Over the {x_label}: {', '.join(ends)}"


def number(value: float) -> str:
    """Return three digits of a number, or all of those before the point."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
