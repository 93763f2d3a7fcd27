"""What a setting may be: the annotation of its field says it, and `fits` and `expected` read it.

    layers_per_block: Annotated[int, Within(1, 32)] = 2
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"

A range is no matter of taste: no network is built, and no number computed with, that a weight file could not fill or
that float16 could not hold. Published models lie far within.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

SHOWN = 100  # characters of a refused value
MAX_TOLD = 250  # characters of what a file says


@dataclass(frozen=True)
class Within:
    """The numbers from `low` to `high`, both included; for a list, how many entries it has."""

    low: float
    high: float


Width = Annotated[int, Within(1, 2**16)]
"""Channels, heads, groups, positions: what is multiplied in a layer. The widest that is published is 5,120."""

Layers = Annotated[int, Within(1, 128)]
"""Layers one behind the other. The deepest tower that is published has 48."""

Levels = Annotated[tuple[Width, ...], Within(1, 8)]
"""A width for each resolution. Stable Diffusion has four."""

Pixels = Annotated[int, Within(1, 4096)]

Token = Annotated[int, Within(0, 2**24)]

Epsilon = Annotated[float, Within(1e-12, 1.0)]
"""What a normalisation adds to the variance; with none, a flat input is divided by zero."""

Positive = Annotated[float, Within(1e-4, 1e4)]
"""A factor that numbers are multiplied and divided by, far from where float16 ends at both sides."""


def fits(hint: Any, value: object) -> bool:
    """Whether a value, with tuples for JSON's lists, is what the annotation `hint` says.

    As Python's JSON has them, true is no number and 2.0 no whole one; a whole number will do for any other.
    """
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        plain, within = arguments
        if isinstance(value, tuple):  # its length first: there may be a million entries
            return within.low <= len(value) <= within.high and fits(plain, value)
        return fits(plain, value) and within.low <= value <= within.high
    if kind in (Union, UnionType):
        return any(fits(one, value) for one in arguments)
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(hints) == len(value) and all(map(fits, hints, value))
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # NaN is not
    return type(value) is (kind or hint)


def expected(hint: Any) -> str:
    """The annotation `hint` in words: "a whole number from 1 to 32"."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        plain, within = arguments
        if get_origin(plain) is tuple:
            return f"a list of {within.low} to {within.high}, each {expected(get_args(plain)[0])}"
        end = "up" if math.isinf(within.high) else f"to {within.high}"
        return f"{expected(plain)} from {within.low} {end}"
    if kind in (Union, UnionType):
        return " or ".join(map(expected, arguments))
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {expected(arguments[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint, "a JSON object")


def shown(value: object) -> str:
    """A refused value, as short as a message needs."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists within thousands of lists
        return "a value that is too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def told(text: object) -> str:
    """What a file says, in one line that is not too long: names in it may be anything."""
    line = str(text) if str(text).isprintable() else repr(str(text))[1:-1]
    return line if len(line) <= MAX_TOLD else f"{line[:MAX_TOLD]}…"


def bare(name: object) -> str:
    """A name that was given, as `shown`, but without quotes."""
    return shown(name).strip("'")
