"""The choice of a model: what was chosen before stays until the new one is loaded."""

from __future__ import annotations

import contextvars
import html
from typing import Any

import gradio as gr
from gradio.components import Component

from .controls import QUIET, SIZED, SizeSlider, bounds
from .models import ModelHolder
from .tab import Tab

SAMPLED = ("num_inference_steps", "guidance_scale", "sampler")


def model_menu(holder: ModelHolder) -> gr.Dropdown:
    """The list of models."""
    return gr.Dropdown(holder.names, value=holder.first, label="Model", elem_id="model", min_width=260, scale=1)


def connect_menu(menu: gr.Dropdown, note: gr.Markdown, holder: ModelHolder, tabs: list[Tab]) -> None:
    """Load a model when it is chosen, and give the controls its sizes and defaults."""
    before = gr.State(holder.first)

    def choose(name: str, previous: str, progress: gr.Progress = gr.Progress()) -> dict[Component, Any]:  # noqa: B008
        context = contextvars.copy_context()

        def tell(text: str, share: float) -> None:
            # Downloads report from threads of their own, in which Gradio would not know whose event this is.
            context.copy().run(progress, share, desc=text)

        try:
            holder.pipeline(name, tell)
        except ValueError as error:
            return {menu: previous, note: f"**{html.escape(str(error), quote=False)}** The model stays as it was."}
        updates = {before: name, note: ""}
        return updates if name == previous else updates | resize(holder, name, tabs)

    menu.focus(lambda name: name, menu, before, **QUIET)  # a link or the history may have chosen since

    sized = [tab.controls[control] for tab in tabs for control in (*SIZED, *SAMPLED)]
    menu.input(
        choose,
        [menu, before],
        [menu, note, before, *sized],
        show_progress="full",
        show_progress_on=note,
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
    )


def resize(holder: ModelHolder, name: str, tabs: list[Tab]) -> dict[Component, Any]:
    """The updates that give the controls a model's sizes and defaults."""
    defaults = holder.defaults_of(name)
    updates: dict[Component, Any] = {}
    for tab in tabs:
        for control in SIZED:
            updates[tab.controls[control]] = SizeSlider(**bounds(defaults), value=defaults.side)
        for control in SAMPLED:
            updates[tab.controls[control]] = getattr(defaults, control)
    return updates
