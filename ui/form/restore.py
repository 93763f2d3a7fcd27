"""Settings back into the controls: from the visit's history, from a picture's file, and from a link."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from ui.stage import live

from ..keep.history import History, Kept, of_pictures
from ..keep.link import from_query
from ..keep.metadata import read_infotext
from ..runs.errors import titled, told_on_the_page
from ..runs.models import ModelHolder
from ..stage.film import read_film
from ..tab import Tab, shown
from .controls import CHECKED, Controls, ModelSlider, Updates, of_the_model
from .fitting import Fitted, fit
from .inputs import picked
from .photo import SEEN, own_file


def fill(tab: Tab, settings: dict[str, Any], holder: ModelHolder, chosen: str | None = None) -> tuple[Updates, Fitted]:
    """The updates that put settings into a tab's controls, and how they fit; `chosen` is the model in the form."""
    model = settings.get("model")
    defaults = holder.defaults_of(model if model in holder.names else chosen)
    fitted = fit(settings, tab.controls, defaults)
    updates: Updates = {tab.controls[name]: value for name, value in fitted.values.items()}
    for name, slider in of_the_model(defaults).items():
        if name in fitted.values or "model" in fitted.values:
            value = fitted.values.get(name, slider["value"])
            updates[tab.controls[name]] = ModelSlider(**{**slider, "value": value})
    return updates, fitted


def all_controls(tabs: dict[str, Tab]) -> list[Component]:
    """The controls of both tabs, each once: they share the choice of the model."""
    return list(dict.fromkeys(component for tab in tabs.values() for component in tab.controls.values()))


def bring(
    settings: dict[str, Any], tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, chosen: str, origin: str
) -> Updates:
    """The updates that put settings into the tab that they are for, and a message about what was taken and what not.

    chosen is the model in the form; origin is the file or the link, of which all is told only where it did not fit.
    """
    kind = "i2i" if "strength" in settings else "t2i"
    updates, fitted = fill(tabs[kind], settings, holder, chosen)
    if kind == "i2i":
        missing = "the photo and its mask, which are" if settings.get("mask") else "the photo, which is"
        fitted.left.append(f"{missing} not in the {origin}")
    complete = not fitted.changed and not fitted.left
    if not complete or origin == "file":
        tell = gr.Info if complete else gr.Warning
        tell(titled("In the form now", fitted.told()), duration=20)
    return {pages: gr.Tabs(selected=kind), **updates}


def connect_history(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, history: History) -> None:
    """A click on a thumbnail brings back picture, film and settings."""

    def restore(runs: list[Kept], event: gr.SelectData) -> Updates:
        run = picked(event, of_pictures(runs))
        tab = tabs[run.kind]
        updates: Updates = {pages: gr.Tabs(selected=run.kind), **fill(tab, run.settings, holder)[0]}
        try:
            film = read_film(run.film)
        except ValueError as error:
            gr.Warning(titled("The settings are back", str(error)))
            return updates
        return updates | {tab.view.live: live.replay(run.shown(film), run.link)} | tab.show(run)

    shown = [part for tab in tabs.values() for part in (tab.view.live, *tab.shown)]
    outputs = [pages, *all_controls(tabs), *shown]
    history.gallery.select(restore, history.runs, outputs, show_progress="hidden", api_visibility="private")


def connect_file(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, file: gr.File) -> None:
    """A picture that is dropped on the page gives its settings to the tab that it came from."""
    menu = tabs["t2i"].controls["model"]

    def restore(path: str | None, chosen: str) -> Updates:
        with told_on_the_page():
            settings = read_infotext(own_file(path or ""))
            others = settings.get("others", {})
            model = holder.called(others.get("Model", ""))
            if model is not None:
                settings |= {"model": model, "others": {key: others[key] for key in others if key != "Model"}}
            return {file: None, **bring(settings, tabs, holder, pages, chosen, "file")}

    outputs = [pages, file, *all_controls(tabs)]
    file.upload(restore, [file, menu], outputs, show_progress="hidden", api_visibility="private")


PLAY = """() => {
  const link = new URLSearchParams(location.search);
  if (!link.has("seed") || link.has("strength") || sessionStorage.getItem("t2i-live")) return;
  setTimeout(() => document.querySelector("#t2i-generate").click(), 0);
}"""
"""Press Generate for a link that says all: a photo is not in it, and a run that is found again goes on by itself."""


def connect_link(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, page: gr.Blocks) -> None:
    """Settings in the page's address are in the form when it opens, and those with a seed are drawn at once."""
    menu = tabs["t2i"].controls["model"]

    def restore(chosen: str, request: gr.Request) -> Updates:
        settings = from_query(dict(request.query_params))
        return bring(settings, tabs, holder, pages, chosen, "link") if settings else {pages: gr.skip()}

    filled = page.load(restore, menu, [pages, *all_controls(tabs)], **CHECKED)
    filled.success(None, js=PLAY, api_visibility="private")


def connect_use(tabs: dict[str, Tab], pages: gr.Tabs) -> None:
    """A finished picture becomes the photo of Image2Image, with its prompt."""
    photo, prompt = (tabs["i2i"].controls[name] for name in ("image", "prompt"))

    def use(run: Kept | None) -> Updates:
        made = shown(run)
        return {photo: made.files[0], prompt: made.request.prompt, pages: gr.Tabs(selected="i2i")}

    for tab in tabs.values():
        used = tab.view.use.click(use, tab.view.last, [photo, prompt, pages], **CHECKED)
        used.success(None, js=SEEN, api_visibility="private")


def connect_inside(tab: Tab, pages: gr.Tabs, inside: tuple[gr.Tabs, Controls]) -> None:
    """The run that the tab shows can be looked into: its settings go to the form of "Inside a run"."""
    sections, controls = inside
    taken = ("prompt", "seed", "num_inference_steps", "guidance_scale")

    def look(run: Kept | None) -> Updates:
        settings = shown(run).settings
        updates = {controls[name]: settings[name] for name in taken} | {controls["seed"]: str(settings["seed"])}
        return {pages: gr.Tabs(selected="inside"), sections: gr.Tabs(selected="run"), **updates}

    outputs = [pages, sections, *(controls[name] for name in taken)]
    tab.view.inside.click(look, tab.view.last, outputs, **CHECKED)
