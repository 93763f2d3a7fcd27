"""The tab that draws a picture from words."""

from __future__ import annotations

import gradio as gr

from .controls import more_controls, prompt_controls, sampling_controls
from .history import History
from .tab import Drawing, Tab, connect, run_buttons, run_view

EXAMPLES = (
    "a rocket, noto style, on a blue background",
    "a fox face, fluent 3d style",
    "an owl, fluent color style, on a purple background",
    "a green apple next to a red heart",
    "a sunflower, fluent 3d style, on a blue background",
)


def text2image(drawing: Drawing, history: History, model: gr.Dropdown) -> Tab:
    """Build the tab and make it work."""
    holder = drawing.holder
    kind = "t2i"
    with gr.Row(equal_height=False, elem_classes="workbench"):
        with gr.Column(scale=4, min_width=320, elem_classes="controls"):
            controls = prompt_controls(
                "Describe a picture: a rocket, noto style, on a blue background", model, holder, kind
            )
            buttons = run_buttons(kind)
            controls |= sampling_controls(holder.defaults, kind)
            controls |= more_controls(holder.defaults, kind, controls)
            gr.Examples(
                [[text] for text in EXAMPLES], controls["prompt"], label="Try one of these", api_visibility="private"
            )
        with gr.Column(scale=5, min_width=320):
            view = run_view(kind, buttons)
    reuse = controls.pop("_reuse")
    tab = Tab(kind, controls | {"model": model}, view, history)
    connect(tab, drawing, reuse)
    return tab
