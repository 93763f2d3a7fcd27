"""The tab Text2Image: a picture from a prompt."""

from __future__ import annotations

import json

import gradio as gr

from .form.chips import SHOW_WALL, WALL, knows_words, wall
from .form.controls import CHECKED, connect_fast, more_controls, sampling_controls
from .form.inputs import picked
from .form.prompt import prompt_controls
from .keep.history import History
from .stage.opening import EXAMPLES, card, cards
from .tab import PRESS, Services, Tab, connect, run_view


def text2image(services: Services, history: History, model: gr.Dropdown) -> Tab:
    """Build the tab and connect it."""
    kind, models = "t2i", services.models
    defaults = models.defaults()
    with gr.Row(equal_height=False, elem_classes="areas"):
        with gr.Column(elem_classes="ask"):
            controls = prompt_controls(f"Describe a picture: {EXAMPLES[0][0]}", model, models, kind)
            pictures = [(card(number), prompt) for number, (prompt, _) in enumerate(EXAMPLES)]
            examples = cards(pictures, "Or press one of these", f"{kind}-cards")
            if WALL.is_dir():
                wall(f"{kind}-wall", away=not knows_words(models, None))
                # By a script: when an accordion is updated, Gradio 6.31 puts the page's first values in once more.
                knowing = [name for name in models.catalogue.sources if knows_words(models, name)]
                model.change(None, model, js=SHOW_WALL % (kind, json.dumps(knowing)), api_visibility="private")
        with gr.Column(elem_classes="view"):
            view = run_view(kind, controls.pop("_run"))
        with gr.Column(elem_classes="settings"):
            controls |= sampling_controls(defaults, kind)
            controls |= more_controls(defaults, kind, controls, model, models)
            connect_fast(controls, model, models)
    controls["prompt"].value = EXAMPLES[0][0]
    reuse, filling, sketch = (controls.pop(name) for name in ("_reuse", "_fill", "_sketch"))
    tab = Tab(kind, controls | {"model": model}, view, history, sketch, filling)
    connect(tab, services, reuse)

    def fill(event: gr.SelectData) -> tuple[str, str]:
        prompt, seed = picked(event, EXAMPLES)
        return prompt, str(seed)

    filled = examples.select(fill, None, [controls["prompt"], controls["seed"]], **CHECKED)
    filled.success(None, js=PRESS % kind, api_visibility="private")
    return tab
