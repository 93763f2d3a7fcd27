"""Settings back into the controls: from the visit's history, from a picture's file, and from a link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ui import live

from .controls import CHECKED, QUIET, SIZED, SizeSlider, Updates, bounds
from .errors import told_on_the_page
from .film import read_film
from .history import History, Kept, at
from .link import from_query
from .metadata import read_infotext
from .models import ModelHolder
from .photo import own_file
from .tab import Tab, shown


def fill(tab: Tab, settings: dict[str, Any], holder: ModelHolder) -> Updates:
    """The updates that put settings into a tab's controls; what its controls can't hold is left as it is."""
    updates = {
        component: "" if name == "seed" and settings[name] is None else fitting(component, settings[name])
        for name, component in tab.controls.items()
        if name in settings
    }
    if settings.get("model") in holder.names:
        defaults = holder.defaults_of(settings["model"])
        for name in SIZED:
            updates[tab.controls[name]] = SizeSlider(**bounds(defaults), value=settings.get(name, defaults.side))
    return updates


def all_controls(tabs: dict[str, Tab]) -> list[Component]:
    """The controls of both tabs, each once: they share the choice of the model."""
    return list(dict.fromkeys(component for tab in tabs.values() for component in tab.controls.values()))


def fitting(component: Component, value: Any) -> Any:
    """The value for a control, or no change where the control does not offer it."""
    if isinstance(component, gr.Slider):
        inside = component.minimum <= value <= component.maximum
        return value if inside else gr.skip()
    if isinstance(component, (gr.Dropdown, gr.Radio)):
        return value if value in {choice for _, choice in component.choices} else gr.skip()
    if isinstance(component, gr.Image):
        return value if value and Path(value).exists() else None
    if isinstance(component, gr.HTML):
        return gr.skip()  # a mask is the photo's, and goes with it
    return str(value)


def connect_history(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, history: History) -> None:
    """A click on a thumbnail brings back picture, film and settings."""

    def restore(runs: list[Kept], event: gr.SelectData) -> Updates:
        with told_on_the_page():
            run = at(runs, event.index)
        tab = tabs[run.kind]
        updates: Updates = {pages: gr.Tabs(selected=run.kind)} | fill(tab, run.settings, holder)
        try:
            film = read_film(run.film)
        except ValueError as error:
            gr.Warning(str(error), title="The settings are back")
            return updates
        return updates | {tab.view.live: live.replay(film, run.link)} | tab.show(run)

    shown = [part for tab in tabs.values() for part in (tab.view.live, *tab.shown)]
    outputs = [pages, *all_controls(tabs), *shown]
    history.gallery.select(restore, history.runs, outputs, show_progress="hidden", api_visibility="private")


def connect_file(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, file: gr.File) -> None:
    """A PNG that is dropped on the page gives its settings to the tab that it came from."""

    def restore(path: str) -> Updates:
        with told_on_the_page():
            settings = read_infotext(own_file(path))
        kind = "i2i" if "strength" in settings else "t2i"
        gr.Info("The settings of this picture are in the form now.", title="Restored")
        return {pages: gr.Tabs(selected=kind), file: None} | fill(tabs[kind], settings, holder)

    outputs = [pages, file, *all_controls(tabs)]
    file.upload(restore, file, outputs, show_progress="hidden", api_visibility="private")


def connect_link(tabs: dict[str, Tab], holder: ModelHolder, pages: gr.Tabs, page: gr.Blocks) -> None:
    """Settings in the page's address are in the form when it opens."""

    def restore(request: gr.Request) -> Updates:
        settings = from_query(dict(request.query_params))
        if not settings:
            return {pages: gr.skip()}
        kind = "i2i" if "strength" in settings else "t2i"
        return {pages: gr.Tabs(selected=kind)} | fill(tabs[kind], settings, holder)

    outputs = [pages, *all_controls(tabs)]
    page.load(restore, None, outputs, **QUIET)


def connect_use(tabs: dict[str, Tab], pages: gr.Tabs) -> None:
    """A finished picture becomes the photo of Image2Image, with its prompt."""
    photo, prompt = (tabs["i2i"].controls[name] for name in ("image", "prompt"))

    def use(run: Kept | None) -> Updates:
        made = shown(run)
        return {photo: made.files[0], prompt: made.request.prompt, pages: gr.Tabs(selected="i2i")}

    for tab in tabs.values():
        tab.view.use.click(use, tab.view.last, [photo, prompt, pages], **CHECKED)
