"""The tab that opens the model up: the noise, the run, the samplers."""

from __future__ import annotations

import gradio as gr

from ..form.controls import Controls
from ..runs.models import ModelHolder
from .noise import noise_lab
from .run import inside_a_run
from .samplers import samplers_side_by_side


def build_inside(holder: ModelHolder, menu: gr.Dropdown) -> tuple[gr.Tabs, Controls]:
    """Build the tab and make it work, on the model that `menu` names; its sections, and the controls of "run"."""
    with gr.Tabs(elem_id="inside-tabs") as sections:
        with gr.Tab("Noise lab", id="noise"):
            noise_lab(holder, menu)
        with gr.Tab("Inside a run", id="run"):
            controls = inside_a_run(holder, menu)
        with gr.Tab("Samplers", id="samplers"):
            samplers_side_by_side(holder, menu)
    return sections, controls
