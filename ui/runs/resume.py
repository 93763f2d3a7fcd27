"""A page that was loaded again, or whose phone slept, finds its run: the film so far, and then what goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import parse_qsl

import gradio as gr

from ui.stage import live

from ..form.controls import CHECKED, Updates
from ..form.restore import fill
from ..keep.link import from_query
from ..stage.film import read_film
from ..tab import Drawing, Tab, keep_in_history, watch

GONE = "This run is gone, for the server was started again. Its settings and its seed are in the form: press Generate."

REMEMBERED = '() => sessionStorage.getItem("%s-live") || ""'
"""What ui/stage/live.js has noted of the tab's last run, for as long as the browser's tab is open."""


def connect_resume(tab: Tab, drawing: Drawing, page: gr.Blocks) -> None:
    """Let the tab go on with the run that it showed before: Gradio opens a page anew whose connection was lost."""
    noted = gr.Textbox(visible=False)
    view, runs = tab.view, drawing.runs

    async def resume(noted: str, visitor: gr.Request) -> AsyncIterator[Updates]:
        yield {view.live: gr.skip()}  # an event that never answers empties all that it could have changed
        run_id, link = read_note(noted)
        run = runs.get(run_id)
        if run is None:
            if link:
                yield {
                    view.live: live.failed(run_id, GONE),
                    **fill(tab, from_query(dict(parse_qsl(link))), drawing.holder)[0],
                }
        elif run.done is not None:
            try:
                film = run.done.shown(read_film(run.done.film))
                yield {view.live: live.so_far(run_id, film, run.link), **tab.show(run.done)}
            except ValueError:  # after a day
                return
        else:
            async with aclosing(watch(tab, drawing.backend, run, visitor.session_hash)) as updates:
                async for update in updates:
                    yield update

    outputs = list(dict.fromkeys([*tab.watched, *tab.controls.values()]))
    keep_in_history(tab, page.load(resume, noted, outputs, js=REMEMBERED % tab.kind, **CHECKED))


def read_note(noted: str) -> tuple[str, str]:
    """The name of a run and the query of its link, as ui/stage/live.js notes them; empty where there are none."""
    try:
        run_id, link = (str(json.loads(noted)[name]) for name in ("run", "link"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    return run_id, link
