"""The tab Inside: a tour of ten stops through one run, and below it the laboratory."""

from __future__ import annotations

import gradio as gr

from ..runs.backend import Backend
from ..runs.message_rate import MessageRate
from ..runs.models import LoadedModels
from .laboratory import build_laboratory
from .tour import build_tour, connect_tour


def build_inside(
    models: LoadedModels, backend: Backend, rate: MessageRate, menu: gr.Dropdown
) -> tuple[gr.HTML, gr.State]:
    """Build the tab on the model of `menu`; return the tour, and the finished run that it is about."""
    run = gr.State(None)
    tour = build_tour()
    connect_tour(tour, run, menu, backend, rate)
    with gr.Accordion("Laboratory: all numbers", open=False, elem_id="laboratory"):
        build_laboratory(models, backend, menu)
    return tour, run
