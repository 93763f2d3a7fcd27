"""The choice of a model: the previous one stays in the form until the new one is loaded."""

from __future__ import annotations

import asyncio

import gradio as gr

from ..runs.cost import describe
from ..runs.errors import explain, titled
from ..runs.models import LoadedModels
from ..words.vocabulary import subjects_of
from .controls import CHECKED, QUIET, SAMPLED, Controls, ModelSlider, Updates, model_sliders
from .inputs import Dropdown

FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
"""Families of models, by the width of the text features that their U-Net reads."""


def model_menu(models: LoadedModels) -> gr.Dropdown:
    """Return the list of models."""
    catalogue = models.catalogue
    return Dropdown(catalogue.choices, value=catalogue.first, label="Model", elem_id="model", min_width=260, scale=1)


def model_note(models: LoadedModels, name: str | None = None) -> str:
    """Return a note on what a model draws and, once it is loaded, how long a picture takes. Reads files."""
    pipeline = models.loaded(name)
    return f"{subjects(models, name)} {'' if pipeline is None else describe(pipeline)}".rstrip()


def subjects(models: LoadedModels, name: str | None = None) -> str:
    """Return a sentence about what a model can draw, by its vocabulary or its family."""
    catalogue, pipeline = models.catalogue, models.loaded(name)
    drawn = subjects_of(catalogue.path(name))
    if drawn:
        return drawn
    if pipeline is None:
        width = (catalogue.configs(name)[0] or {}).get("cross_attention_dim")
    else:
        width = pipeline.models.unet.config.cross_attention_dim
    kind = f"A model like {FAMILIES[width]}: it" if width in FAMILIES else "It"
    side = models.defaults(name).side
    return f"{kind} draws what you describe, best at {side} x {side} pixels."


def connect_menu(
    menu: gr.Dropdown, note: gr.Markdown, models: LoadedModels, forms: list[Controls], page: gr.Blocks
) -> None:
    """Load a chosen model, give the forms its sizes and defaults, and note what it draws and how fast."""
    before = gr.State(models.catalogue.first)

    def show_note(name: str) -> str:
        return model_note(models, name)

    async def show_note_when_loaded(name: str) -> str:
        await models.wait_if_loading(name)
        return await asyncio.to_thread(model_note, models, name)

    page.load(show_note_when_loaded, menu, note, **CHECKED)
    menu.change(show_note, menu, note, **CHECKED)

    async def choose(
        name: str,
        previous: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        if name == previous:
            return {before: name}
        try:
            async for text, share in models.wait(name):
                progress(share, desc=text)
        except Exception as error:
            gr.Warning(titled("The model stays as it was", explain(error)))
            return {menu: previous}
        return {before: name, **await asyncio.to_thread(suit, models, name, forms)}

    menu.focus(lambda name: name, menu, before, **QUIET)  # a link or the history may have chosen since

    changed = [form[control] for form in forms for control in (*model_sliders(models.defaults()), *SAMPLED, "fast")]
    # Use `blur`, which comes once for each choice: Gradio 6.31 sends `input` twice, and no `select` for the keyboard.
    chosen = menu.blur(
        choose,
        [menu, before],
        [menu, before, *changed],
        show_progress="full",
        show_progress_on=note,
        concurrency_limit=None,
        api_visibility="private",
    )
    chosen.success(show_note, menu, note, **CHECKED)


def suit(models: LoadedModels, name: str, forms: list[Controls]) -> Updates:
    """Return the updates that give the forms a model's sizes and defaults."""
    defaults = models.defaults(name)
    updates: Updates = {}
    for form in forms:
        updates |= {form[control]: ModelSlider(**slider) for control, slider in model_sliders(defaults).items()}
        updates |= {form[control]: getattr(defaults, control) for control in SAMPLED}
        updates[form["fast"]] = gr.Checkbox(False, visible=defaults.fast)
    return updates
