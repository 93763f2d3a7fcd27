"""Settings back into the form: from the visit's history, from a picture's file, from a text, and from a link."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from stable_diffusion.request import RequestError
from ui.stage import live

from .form.controls import CHECKED, QUIET, Updates
from .form.fitting import fill
from .form.inputs import picked
from .form.photo import SEEN, own_file
from .inside.tour import LOOK_INSIDE_AT, arriving
from .keep.history import FinishedRun, History, by_picture
from .keep.infotext import Infotext, parse_infotext
from .keep.link import from_query
from .keep.metadata import read_infotext
from .runs.errors import errors_on_page, titled
from .runs.models import LoadedModels
from .stage.film import read_film, with_final_picture
from .tab import Tab, finished


def all_controls(tabs: dict[str, Tab]) -> list[Component]:
    """Return the controls of both tabs, each once: the choice of the model belongs to both."""
    return list(dict.fromkeys(component for tab in tabs.values() for component in tab.controls.values()))


def restore(
    settings: dict[str, Any], tabs: dict[str, Tab], models: LoadedModels, pages: gr.Tabs, chosen: str, origin: str
) -> Updates:
    """Return the updates that put settings into their tab, and report the settings that did not fit.

    chosen: the model in the form. origin: "file" or "text", of which everything is reported, or "link".
    """
    kind = "i2i" if "strength" in settings or "image" in settings else "t2i"
    updates, fitted = fill(tabs[kind].controls, settings, models, chosen)
    missing = ["the photo"] if kind == "i2i" and "image" not in settings else []
    missing += ["its mask"] if settings.get("mask") else []
    if missing:
        fitted.left.append(f"{' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in the {origin}")
    complete = not fitted.changed and not fitted.left
    if not complete or origin != "link":
        message = gr.Info if complete else gr.Warning
        message(titled("In the form now", fitted.report()), duration=20)
    return {pages: gr.Tabs(selected=kind), **updates}


def connect_history(tabs: dict[str, Tab], models: LoadedModels, pages: gr.Tabs, history: History) -> None:
    """Restore picture, film and settings of a clicked thumbnail."""

    def show(runs: list[FinishedRun], event: gr.SelectData) -> Updates:
        run = picked(event, by_picture(runs))
        tab = tabs[run.kind]
        updates: Updates = {pages: gr.Tabs(selected=run.kind), **fill(tab.controls, run.settings, models)[0]}
        try:
            film = read_film(run.film)
        except RequestError as error:
            gr.Warning(titled("The settings are back", str(error)))
            return updates
        return updates | {tab.view.live: live.replay(with_final_picture(film, run), run.link)} | tab.show(run)

    shown = [part for tab in tabs.values() for part in (tab.view.live, *tab.finished_outputs)]
    outputs = [pages, *all_controls(tabs), *shown]
    history.gallery.select(show, history.runs, outputs, show_progress="hidden", api_visibility="private")


def model_by_name(models: LoadedModels, name: str) -> str | None:
    """Return the model that writes this name into its pictures, unless it would have to be downloaded."""
    for choice, source in models.catalogue.sources.items():
        path = models.catalogue.path(choice)
        if path.exists() and name == (path.stem if path.is_file() else path.name):
            return choice
        if name == source and models.loaded(choice) is not None:
            return choice
    return None


def with_model(settings: Infotext, models: LoadedModels) -> Infotext:
    """Return the settings of a picture with the model that it names, if that is here."""
    others = settings.get("others", {})
    model = model_by_name(models, others.get("Model", ""))
    if model is None:
        return settings
    return {**settings, "model": model, "others": {key: others[key] for key in others if key != "Model"}}


def connect_file(tabs: dict[str, Tab], models: LoadedModels, pages: gr.Tabs, file: gr.File) -> None:
    """Restore the settings of a picture that is dropped on the page."""
    menu = tabs["t2i"].controls["model"]

    def read(path: str | None, chosen: str) -> Updates:
        with errors_on_page():
            settings = with_model(read_infotext(own_file(path or "")), models)
            return {file: None, **restore(settings, tabs, models, pages, chosen, "file")}

    outputs = [pages, file, *all_controls(tabs)]
    dropped = file.upload(read, [file, menu], outputs, show_progress="hidden", api_visibility="private")
    dropped.failure(lambda: None, None, file, **QUIET)


def connect_text(tabs: dict[str, Tab], models: LoadedModels, pages: gr.Tabs) -> None:
    """Restore the settings of a text that was pasted as a prompt."""
    menu = tabs["t2i"].controls["model"]

    def read(text: str | None, chosen: str) -> Updates:
        return restore(with_model(parse_infotext(text or ""), models), tabs, models, pages, chosen, "text")

    for tab in tabs.values():
        tab.fill.click(read, [tab.controls["prompt"], menu], [pages, *all_controls(tabs)], **CHECKED)


PLAY = """() => {
  const link = new URLSearchParams(location.search);
  const kind = link.has("strength") ? "i2i" : "t2i";
  const whole = link.has("seed") && (kind === "t2i" || link.has("photo"));
  if (!whole || stored("sessionStorage", `${kind}-live`)) return;
  const press = () => {
    const button = document.querySelector(`#${kind}-generate`);
    button ? button.click() : setTimeout(press, 100); // a tab's parts come when it is shown
  };
  setTimeout(press, 0);
}"""
"""Press Generate for a link that is complete, with its photo or without any, on a page that has no run to continue."""


def connect_link(tabs: dict[str, Tab], models: LoadedModels, pages: gr.Tabs, page: gr.Blocks) -> None:
    """Put the settings of the page's address into the form, and press Generate if it is complete."""
    menu = tabs["t2i"].controls["model"]

    def read(chosen: str, request: gr.Request) -> Updates:
        settings = from_query(dict(request.query_params))
        return restore(settings, tabs, models, pages, chosen, "link") if settings else {pages: gr.skip()}

    def choose_again(request: gr.Request) -> Any:
        name = request.query_params.get("model")
        return name if name in models.catalogue.sources else gr.skip()

    filled = page.load(read, menu, [pages, *all_controls(tabs)], **CHECKED)
    # On a slow machine Gradio 6.31 puts the page's first values in once more after these.
    chosen = filled.success(choose_again, None, menu, **QUIET)
    chosen.success(None, js=PLAY, api_visibility="private")


def connect_use(tabs: dict[str, Tab], pages: gr.Tabs) -> None:
    """Make a finished picture the photo of Image2Image, with its prompt."""
    photo, prompt = (tabs["i2i"].controls[name] for name in ("image", "prompt"))

    def use(run: FinishedRun | None) -> Updates:
        over = finished(run)
        return {photo: over.files[0], prompt: over.request.prompt, pages: gr.Tabs(selected="i2i")}

    for tab in tabs.values():
        used = tab.view.use.click(use, tab.view.last, [photo, prompt, pages], **CHECKED)
        used.success(None, js=SEEN, api_visibility="private")


def connect_inside(
    tabs: dict[str, Tab], pages: gr.Tabs, inside: gr.Tab, tour: gr.HTML, run: gr.State, page: gr.Blocks
) -> None:
    """Let the tour be about the picture that a tab shows last, and open it by "Look inside" or by an address.

    run: the run that the tour is about.
    """
    stop = gr.State(None)  # the stop at which it arrives, by its number; None: where it was left

    def look(over: FinishedRun | None) -> Updates:
        return {pages: gr.Tabs(selected="inside"), run: finished(over), stop: LOOK_INSIDE_AT}

    def at_address(request: gr.Request) -> gr.Tabs:
        return gr.Tabs(selected="inside") if "inside" in request.query_params else gr.skip()

    for tab in tabs.values():
        tab.view.inside.click(look, tab.view.last, [pages, run, stop], **CHECKED)
        tab.view.last.change(lambda over: over, tab.view.last, run, **QUIET)
    inside.select(lambda over, number: (arriving(over, number), None), [run, stop], [tour, stop], **QUIET)
    page.load(at_address, None, pages, **QUIET)
