"""What the views of the Inside tab share: their component, and how pictures are sent to it.

What a view is given at every step has to be small: Gradio goes through the whole of it in the browser.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent


def inside_view(kind: str, script: str | None = None) -> gr.HTML:
    """A view, still empty; `kind` names its template.

    What a visitor wrote must not be in a template: Gradio reads it as HTML, and a `${` in it as a script. It is for
    the script to set.
    """
    return gr.HTML(
        value={},
        html_template=(HERE / f"{kind}.html").read_text(encoding="utf-8"),
        css_template=(HERE / "inside.css").read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=f"inside-{kind}",
    )
