"""A page that is loaded again finds its form, its run, which goes on here, and the pictures of the visit.

Gradio builds a page anew when it is reloaded, or when its connection was lost while a phone slept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from stable_diffusion.request import RequestError
from ui.stage import live

from .form.controls import CHECKED, Updates
from .form.fitting import fill
from .keep.history import MAX_RUNS, FinishedRun, History, Visit
from .keep.link import from_query
from .keep.settings import SETTINGS
from .runs.registry import Registry
from .runs.visitors import visitor_of
from .stage.film import read_film, with_final_picture
from .tab import Services, Tab, follow, keep_in_history

GONE = (
    "This run is gone: the server was started again, or has drawn many runs since. "
    "Its settings and its seed are in the form: press Generate."
)
NOT_STORED = ("image", "mask")

STORED_RUN = '() => [stored("sessionStorage", "%s-live"), null]'
"""The note of ui/stage/live.js on the tab's last run, which lasts as long as the browser's tab."""
STORE_FORM = """(...values) => {
  try {
    localStorage.setItem("%s-form", JSON.stringify(Object.fromEntries(%s.map((name, i) => [name, values[i]]))));
  } catch {} // a browser may forbid storing
}"""
STORED_VISIT = '() => [null, stored("localStorage", "visit")]'
"""The names of the visit's runs, newest first, as ui/stage/live.js notes them."""
STORED_FORM = '() => [stored("localStorage", "%s-form"), stored("sessionStorage", "%s-live")]'


def connect_run(tab: Tab, services: Services, page: gr.Blocks) -> None:
    """Continue the run that the tab showed before the page was loaded again."""
    note = gr.Textbox(visible=False)
    view, registry = tab.view, services.registry

    async def resume(note: str, newer: str, visitor: gr.Request) -> AsyncIterator[Updates]:
        yield {view.live: gr.skip()}  # an event that yields nothing would empty all of its outputs
        if newer:  # Generate was quicker
            return
        run_id, link = read_note(note)
        run = registry.get(run_id)
        if run is None:
            if link:
                settings = from_query(dict(parse_qsl(link)))
                updates, _ = await asyncio.to_thread(fill, tab.controls, settings, services.models)
                yield {view.live: live.failed(run_id, GONE), **updates}
        elif run.finished is not None:
            try:
                film = with_final_picture(await asyncio.to_thread(read_film, run.finished.film), run.finished)
            except RequestError:  # films are deleted after a day
                return
            yield {view.live: live.so_far(run_id, film, run.link), **tab.show(run.finished)}
        else:
            async with aclosing(follow(tab, services, run, visitor_of(visitor))) as updates_of_run:
                async for update in updates_of_run:
                    yield update

    outputs = list(dict.fromkeys([*tab.run_outputs, *tab.controls.values()]))
    keep_in_history(tab, page.load(resume, [note, view.run_id], outputs, js=STORED_RUN % tab.kind, **CHECKED))


def connect_visit(history: History, registry: Registry, page: gr.Blocks) -> None:
    """Put the pictures of earlier runs back into the visit, as far as this server drew them and still has them.

    The browser brings the runs' names, never files.
    """
    stored = gr.Textbox(visible=False)

    def restore(runs: list[FinishedRun], stored: str) -> Visit:
        found = [run.finished for run in map(registry.get, read_names(stored)) if run is not None]
        return history.add_earlier(runs, [run for run in found if run is not None])

    page.load(restore, [history.runs, stored], [history.runs, history.gallery], js=STORED_VISIT, **CHECKED)


def connect_form(tab: Tab, services: Services, page: gr.Blocks) -> None:
    """Store a tab's prompt and settings in the browser at each change, and put them back when the page opens.

    Photos are not stored. A link's settings take precedence, and so do those of a run that the server has forgotten.
    """
    names = [name for name in tab.controls if name not in NOT_STORED]
    controls = [tab.controls[name] for name in names]
    stored, note = gr.Textbox(visible=False), gr.Textbox(visible=False)

    def restore(stored: str, note: str, request: gr.Request) -> Updates:
        run_id, _ = read_note(note)
        if from_query(dict(request.query_params)) or (run_id and services.registry.get(run_id) is None):
            return {controls[0]: gr.skip()}
        return fill(tab.controls, read_form(stored), services.models)[0] or {controls[0]: gr.skip()}

    page.load(restore, [stored, note], controls, js=STORED_FORM % (tab.kind, tab.kind), **CHECKED)
    gr.on(
        [one.change for one in controls],
        None,
        controls,
        js=STORE_FORM % (tab.kind, json.dumps(names)),
        api_visibility="private",
    )


def read_note(note: str) -> tuple[str, str]:
    """Return name and link query of a run from the note of ui/stage/live.js; empty if there are none."""
    try:
        run_id, link = (str(json.loads(note)[name]) for name in ("run", "link"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    return run_id, link


def read_names(stored: str) -> list[str]:
    """Return the names of runs that the browser stored, each once and no more than a visit remembers."""
    try:
        names = list(json.loads(stored))
    except (ValueError, TypeError, RecursionError):
        return []
    return list(dict.fromkeys(name for name in names[:MAX_RUNS] if isinstance(name, str)))


def read_form(stored: str) -> dict[str, Any]:
    """Return the settings that the browser stored, apart from unknown and unreadable ones."""
    try:
        form = dict(json.loads(stored))
    except (ValueError, TypeError, RecursionError):
        return {}
    return from_query({name: str(value) for name, value in form.items() if value is not None}, SETTINGS)
