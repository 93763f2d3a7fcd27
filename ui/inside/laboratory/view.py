"""The component of the views of the tab Inside.

A view's value has to be small at every step: Gradio goes through the whole of it in the browser.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent

Value = dict[str, object]
"""Value of a view: the data that its template and script draw."""


def inside_view(kind: str, script: str | None = None) -> gr.HTML:
    """Build an empty view; `kind` names its template, ui/inside/laboratory/{kind}.html.

    A template must not contain text by a visitor: Gradio reads it as HTML, and a `${` in it as a script. The script
    sets such text instead.
    """
    return gr.HTML(
        value={},
        html_template=(HERE / f"{kind}.html").read_text(encoding="utf-8"),
        css_template=(HERE / "inside.css").read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=f"inside-{kind}",
    )
