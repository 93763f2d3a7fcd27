"""The tab that draws a picture from words."""

from __future__ import annotations

import gradio as gr

from .form.controls import CHECKED, more_controls, prompt_controls, sampling_controls
from .form.inputs import picked
from .keep.history import History
from .stage.opening import EXAMPLES, card, cards
from .stage.sketch import sketch_switch
from .tab import Drawing, Tab, connect, run_buttons, run_view

PRESS = '() => document.querySelector("#%s-generate").click()'


def text2image(drawing: Drawing, history: History, model: gr.Dropdown) -> Tab:
    """Build the tab and make it work."""
    holder = drawing.holder
    kind = "t2i"
    with gr.Row(equal_height=False, elem_classes="areas"):
        with gr.Column(elem_classes="ask"):
            controls = prompt_controls(f"Describe a picture: {EXAMPLES[0][0]}", model, holder, kind)
            sketch = sketch_switch(kind)
            pictures = [(card(number), prompt) for number, (prompt, _) in enumerate(EXAMPLES)]
            examples = cards(pictures, "Or press one of these", f"{kind}-cards")
        buttons = run_buttons(kind)
        with gr.Column(elem_classes="view"):
            view = run_view(kind, buttons)
        with gr.Column(elem_classes="settings"):
            controls |= sampling_controls(holder.defaults, kind)
            controls |= more_controls(holder.defaults, kind, controls, holder.limits)
    controls["prompt"].value = EXAMPLES[0][0]
    reuse = controls.pop("_reuse")
    tab = Tab(kind, controls | {"model": model}, view, history, sketch)
    connect(tab, drawing, reuse)

    def fill(event: gr.SelectData) -> tuple[str, str]:
        prompt, seed = picked(event, EXAMPLES)
        return prompt, str(seed)

    filled = examples.select(fill, None, [controls["prompt"], controls["seed"]], **CHECKED)
    filled.success(None, js=PRESS % kind, api_visibility="private")
    return tab
