"""The laboratory of the tab Inside: the noise, a run and the samplers, with all their numbers."""

from __future__ import annotations

import gradio as gr

from ...runs.backend import Backend
from ...runs.models import LoadedModels
from .noise import noise_lab
from .run import inside_a_run
from .samplers import samplers_side_by_side


def build_laboratory(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the views on the model of `menu`."""
    with gr.Tabs(elem_id="inside-tabs"):
        with gr.Tab("Noise lab", id="noise"):
            noise_lab(models, backend, menu)
        with gr.Tab("Inside a run", id="run"):
            inside_a_run(models, backend, menu)
        with gr.Tab("Samplers", id="samplers"):
            samplers_side_by_side(models, backend, menu)
