"""A stop of the tour through the tab Inside: its words, and the view that answers its questions."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from stable_diffusion.request import Request, RequestError, shown

from ..stage.live import webp_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIDE = 256
"""Longest side, in pixels, of a picture that a stop shows."""
QUALITY = 70

Part = Literal["words", "noise", "network", "push", "step", "picture"]
"""A part of the map above the stops."""

Value = dict[str, object]
"""Data that a view shows by the stop's script."""

Show = Callable[[Value], None]


class Question(BaseModel):
    """The question of a stop's script, with the values of its controls; each stop has a class of its own.

    Its defaults are the question that a stop asks first.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, values: object) -> Question:
        """Return the question with these values; `RequestError` if they are not those of its controls."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))[:100] or "question"
            raise RequestError(f"{name} can't be {shown(first['input'])}: {first['msg']}") from None


@dataclass(frozen=True)
class Stop:
    """A stop. Its files are stops/{name}.html, the markup, and stops/{name}.js, the script.

    sentence: what it shows, in at most 14 words. part: the part of the map that it is about. formula: HTML. source:
    file and name of the function that computes it, "schedule.py:NoiseSchedule.level". view: shows its values.
    requests: the requests that a question takes, as many as it costs runs.
    """

    name: str
    title: str
    sentence: str
    part: Part
    formula: str
    source: str
    question: type[Question]
    view: Callable[[Any, Pipeline, Sequence[Request], Show], Inquiry[None]]
    requests: Callable[[Any, Request], Sequence[Request]] = lambda question, request: [request]


@dataclass(frozen=True)
class Source:
    """The code of a function: its file, the number of its first line, and its lines without the docstring."""

    file: str
    line: int
    code: str


@cache
def source_of(name: str) -> Source:
    """Return the code of a function of the library, named as in `Stop.source`."""
    file, _, path = name.partition(":")
    text = (ROOT / "stable_diffusion" / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in path.split("."):
        node = next(one for one in ast.iter_child_nodes(node) if getattr(one, "name", None) == part)
    assert isinstance(node, ast.FunctionDef)
    lines = text.splitlines()
    first, *rest = node.body
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and rest
    body = (rest if is_docstring else node.body)[0].lineno
    head = lines[node.lineno - 1 : first.lineno - 1]
    code = "\n".join([*head, *lines[body - 1 : node.end_lineno]])
    return Source(f"stable_diffusion/{file}", node.lineno, code)


def evenly(count: int, total: int) -> list[int]:
    """Return at most `count` evenly spaced steps of `total`, counted from 1, the first and the last among them."""
    if total <= count:
        return list(range(1, total + 1))
    return [1 + round(i * (total - 1) / (count - 1)) for i in range(count)]


def picture_uri(image: Image.Image, side: int = SIDE) -> str:
    """Return a picture, at most `side` pixels wide and high, as the source of an img element, in few bytes."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=4)
    return webp_uri(buffer.getvalue())
