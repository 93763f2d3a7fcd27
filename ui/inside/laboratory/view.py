"""The components of the views of the laboratory.

A view's value has to be small at every step: Gradio goes through the whole of it in the browser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent

Value = dict[str, object]
"""Value of a view: the data that its template and script draw."""


def inside_view(kind: str, script: str | None = None, *, template: str | None = None, **more: Any) -> gr.HTML:
    """Build a view, `kind` names it and its template, ui/inside/laboratory/{template or kind}.html.

    A template must not contain text by a visitor: Gradio reads it as HTML, and a `${` in it as a script. The script
    sets such text instead.
    """
    return gr.HTML(
        **{"value": {}, **more},
        html_template=(HERE / f"{template or kind}.html").read_text(encoding="utf-8"),
        css_template=(HERE / "inside.css").read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=f"inside-{kind}",
    )


def numbers_view(kind: str) -> gr.HTML:
    """Build a folded view of the numbers and curves of the view `kind`."""
    with gr.Accordion("Numbers and curves", open=False, elem_id=f"inside-{kind}-fold"):
        return inside_view(f"{kind}-numbers", template="numbers")


def formula(text: str) -> None:
    """Build a fold with a formula; text: Markdown."""
    with gr.Accordion("Formula", open=False):
        gr.Markdown(text)
