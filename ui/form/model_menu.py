"""The choice of a model: what was chosen before stays until the new one is loaded."""

from __future__ import annotations

import asyncio

import gradio as gr

from ..runs.errors import explain, titled
from ..runs.models import ModelHolder
from ..runs.pace import describe
from ..tab import Tab
from .controls import CHECKED, QUIET, SAMPLED, ModelSlider, Updates, of_the_model
from .inputs import Dropdown


def model_menu(holder: ModelHolder) -> gr.Dropdown:
    """The list of models."""
    return Dropdown(holder.choices, value=holder.first, label="Model", elem_id="model", min_width=260, scale=1)


def connect_menu(menu: gr.Dropdown, note: gr.Markdown, holder: ModelHolder, tabs: list[Tab], page: gr.Blocks) -> None:
    """Load a model when it is chosen and give the controls its sizes and defaults; say what the one in the menu draws.

    How long a picture takes follows as soon as the model is there.
    """
    before = gr.State(holder.first)

    async def tell(name: str) -> str:
        pipeline, draws = holder.loaded(name), holder.draws(name)
        try:
            return draws if pipeline is None else f"{draws} {await asyncio.to_thread(describe, pipeline)}"
        except Exception as error:  # the model's usual settings can't be drawn with it: whoever does so is told
            explain(error)
            return draws

    async def tell_once_here(name: str) -> str:
        await holder.here(name)
        return await tell(name)

    page.load(tell_once_here, menu, note, **CHECKED)
    menu.change(tell, menu, note, **CHECKED)

    async def choose(
        name: str,
        previous: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        if name == previous:
            return {before: name}
        try:
            async for text, share in holder.wait(name):
                progress(share, desc=text)
        except Exception as error:
            gr.Warning(titled("The model stays as it was", explain(error)))
            return {menu: previous}
        return {before: name, **resize(holder, name, tabs)}

    menu.focus(lambda name: name, menu, before, **QUIET)  # a link or the history may have chosen since

    controls = (*of_the_model(holder.defaults), *SAMPLED)
    sized = [tab.controls[control] for tab in tabs for control in controls]
    # However one chose, a menu is left once: Gradio 6.31's `input` comes twice, its `select` never by the keyboard.
    chosen = menu.blur(
        choose,
        [menu, before],
        [menu, before, *sized],
        show_progress="full",
        show_progress_on=note,
        concurrency_limit=None,
        api_visibility="private",
    )
    chosen.success(tell, menu, note, **CHECKED)


def resize(holder: ModelHolder, name: str, tabs: list[Tab]) -> Updates:
    """The updates that give the controls a model's sizes and defaults."""
    defaults = holder.defaults_of(name)
    updates: Updates = {}
    for tab in tabs:
        for control, slider in of_the_model(defaults).items():
            updates[tab.controls[control]] = ModelSlider(**slider)
        for control in SAMPLED:
            updates[tab.controls[control]] = getattr(defaults, control)
    return updates
