"""Charts as SVG: lines over one axis, and under them their values at the marker or where the pointer is.

All of it is markup, drawn here: which reading is in view is for the style sheet to say, so that no script is needed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, FOOT = 46, 430, 10, 200
"""The sides of the field that the lines are in; below it are the numbers of the axis, and a legend of rows."""
ROW = 21
MAX_READINGS = 50
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """A line of a chart; its points are in the order of their x, and finite."""

    label: str
    points: list[tuple[float, float]]

    def near(self, x: float) -> tuple[float, float]:
        """The point that is nearest to x."""
        return min(self.points, key=lambda point: abs(point[0] - x))


def line(label: str, points: Iterable[Sequence[float]]) -> Line:
    """A line of those of the points that are finite."""
    return Line(label, [(x, y) for x, y in points if math.isfinite(y)])


@dataclass(frozen=True)
class Field:
    """Where the values of a chart lie in it. Logarithmic values are given, and counted, as they are."""

    left: float
    right: float
    low: float
    high: float
    log: bool

    def x(self, x: float) -> float:
        """From the left, in pixels."""
        return LEFT + (x - self.left) / ((self.right - self.left) or 1) * (RIGHT - LEFT)

    def y(self, y: float) -> float:
        """From above, in pixels."""
        return FOOT - (self._lifted(y) - self.low) / ((self.high - self.low) or 1) * (FOOT - TOP)

    def _lifted(self, y: float) -> float:
        return math.log10(y) if self.log else y

    @classmethod
    def of(cls, lines: list[Line], log: bool, low: float | None, high: float | None, right: float | None) -> Field:
        """Room for all lines, and for the values that the axes reach at least."""
        xs = [x for one in lines for x, _ in one.points]
        ys = [math.log10(y) if log else y for one in lines for _, y in one.points]
        ys += [bound for bound in (low, high) if bound is not None]
        top = max(ys) + 0.04 * (max(ys) - min(ys))
        return cls(min(xs), max([*xs, right or 0]), min(ys), max(top, min(ys) + 1e-9), log)

    def marks(self) -> Iterable[str]:
        """Grid lines with their numbers, and the numbers of the axis."""
        for value in ticks(self.low, self.high, 5 if self.log else 4, whole=self.log):
            y = self.y(10**value if self.log else value)
            label = "10" + f"{value:.0f}".translate(SUPERSCRIPTS) if self.log else f"{value:.3g}"
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for value in ticks(self.left, self.right, 6, whole=True):
            yield f'<text x="{self.x(value):.1f}" y="{FOOT + 18}" text-anchor="middle">{value:.0f}</text>'


def ticks(low: float, high: float, count: int, *, whole: bool) -> list[float]:
    """About `count` round values from low to high."""
    rough = (high - low) / count or 1
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    step = max(1, step) if whole else step
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(
    name: str,
    title: str,
    x: str,
    lines: list[Line],
    *,
    marker: float | None = None,
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
    right: float | None = None,
) -> str:
    """A figure over an axis called `x`; nothing at all where no line has a point.

    title is HTML. Its values at `marker` (or in the middle) are in view until the pointer asks for others. low, high
    and right are values that the axes reach at least.
    """
    lines = [one for one in lines if one.points]
    if not lines:
        return ""
    field = Field.of(lines, log, low, high, right)
    longest = max(lines, key=lambda one: len(one.points))
    last = len(longest.points) - 1
    count = min(last, MAX_READINGS - 1)
    places = [longest.points[round(i * last / max(1, count))][0] for i in range(count + 1)]
    middle = places[len(places) // 2]
    places = sorted({*places, middle if marker is None else marker})
    drawn = [*field.marks()]
    for i, one in enumerate(lines):
        corners = " ".join(f"{field.x(x):.1f},{field.y(y):.1f}" for x, y in one.points)
        drawn.append(f'<polyline class="line c{i}" points="{corners}"/>')
    for i, label in enumerate([x, *(one.label for one in lines)]):
        left, y = cell(i)
        swatch = f'<rect class="swatch c{i - 1}" x="{left}" y="{y - 10}" width="10" height="10" rx="3"/>' if i else ""
        drawn.append(f'{swatch}<text x="{left + (16 if i else 0)}" y="{y}">{html.escape(label)}</text>')
    borders = [field.x((a + b) / 2) for a, b in pairwise(places)]
    edges = [LEFT - 10, *borders, RIGHT + 10]
    for place, start, end in zip(places, edges[:-1], edges[1:], strict=True):
        here = place == (middle if marker is None else marker)
        drawn.append(reading(field, lines, place, (start, end), here))
    height = cell(len(lines))[1] + 8
    return (
        f'<figure class="chart" data-chart="{name}"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(summary(x, lines))}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def reading(field: Field, lines: list[Line], place: float, span: tuple[float, float], here: bool) -> str:
    """What all lines say at a place, and the strip of the field that asks for it."""
    start, end = span
    rule = field.x(place)
    parts = [f'<rect class="hit" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{FOOT - TOP}"/>']
    parts.append(f'<path class="rule" d="M{rule:.1f} {TOP}V{FOOT}"/>')
    parts.append(value(0, f"{place:g}"))
    for i, one in enumerate(lines):
        x, y = one.near(place)
        parts.append(f'<circle class="dot c{i}" cx="{field.x(x):.1f}" cy="{field.y(y):.1f}" r="4"/>')
        parts.append(value(i + 1, number(y)))
    return f'<g class="at{" here" if here else ""}" data-x="{place:g}">{"".join(parts)}</g>'


def cell(i: int) -> tuple[int, int]:
    """The left end of the i-th text of the legend, and its line: two stand side by side."""
    return 8 + i % 2 * (WIDTH // 2), FOOT + 22 + ROW * (i // 2 + 1)


def value(i: int, text: str) -> str:
    """A value in its place of the legend."""
    left, y = cell(i)
    return f'<text class="value" x="{left + WIDTH // 2 - 24}" y="{y}" text-anchor="end">{text}</text>'


def summary(x: str, lines: list[Line]) -> str:
    """A chart in words: where each line begins and ends."""
    ends = (f"{one.label} from {number(one.points[0][1])} to {number(one.points[-1][1])}" for one in lines)
    return f"Over the {x}: {', '.join(ends)}"


def number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
