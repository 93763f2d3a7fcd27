"""The laboratory of the tab Inside: noise, a run, samplers, memory and learning, with all their numbers."""

from __future__ import annotations

import gradio as gr

from ...runs.backend import Backend
from ...runs.models import LoadedModels
from .learning import watch_it_learn
from .memory import memory_or_model
from .noise import noise_lab
from .run import inside_a_run
from .samplers import samplers_side_by_side


def build_laboratory(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the views on the model of `menu`. Their tabs have short names: all five fit a phone."""
    with gr.Tabs(elem_id="inside-tabs"):
        with gr.Tab("Noise", id="noise"):
            noise_lab(models, backend, menu)
        with gr.Tab("Run", id="run"):
            inside_a_run(models, backend, menu)
        with gr.Tab("Samplers", id="samplers"):
            samplers_side_by_side(models, backend, menu)
        with gr.Tab("Memory", id="memory"):
            memory_or_model(models, backend, menu)
        with gr.Tab("Learning", id="learning"):
            watch_it_learn()
