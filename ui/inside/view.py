"""What the views of the Inside tab share: their component, and how pictures and curves are sent to it.

A view's value is the whole of what it shows. Of a value that grows, Gradio sends the browser only what is new.
Markup is fixed and the script sets text and pictures through the DOM: no value is ever read as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..live import data_uri

HERE = Path(__file__).parent
Points = list[tuple[float, float]]


def inside_view(kind: str) -> gr.HTML:
    """A view, still empty; `kind` names its markup and its drawing function in inside.js."""
    return gr.HTML(
        value={},
        html_template=(HERE / f"{kind}.html").read_text(encoding="utf-8"),
        css_template=(HERE / "inside.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "inside.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=f"inside-{kind}",
    )


def figure(image: Image.Image, title: str, note: str = "") -> dict[str, Any]:
    """A picture with its caption."""
    return {"src": data_uri(image), "title": title, "note": note}


def curve(label: str, points: Iterable[Sequence[float]]) -> dict[str, Any]:
    """A line of a chart; points that are not finite are left out."""
    finite = ([round(x, 4), float(f"{y:.5g}")] for x, y in points if math.isfinite(y))
    return {"label": label, "points": list(finite)}
