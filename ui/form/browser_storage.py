"""Prompt and settings stay in the visitor's browser, for when the page is loaded again. Photos are not kept."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from ..keep.link import from_query
from ..runs.resume import read_note
from ..tab import Drawing, Tab
from .controls import CHECKED, Updates
from .restore import fill
from .settings import SETTINGS

LEFT_OUT = ("image", "mask")

KEEP = """(...values) => {
  localStorage.setItem("%s-form", JSON.stringify(Object.fromEntries(%s.map((name, i) => [name, values[i]]))));
}"""
KEPT = '() => [localStorage.getItem("%s-form") || "", sessionStorage.getItem("%s-live") || ""]'


def connect_stay(tab: Tab, drawing: Drawing, page: gr.Blocks) -> None:
    """Note what a tab's form holds at each change, and put it back when the page opens.

    A link's settings go before it, and so do those of a run that the server has forgotten, which `resume` puts back.
    """
    names = [name for name in tab.controls if name not in LEFT_OUT]
    controls = [tab.controls[name] for name in names]
    kept, noted = gr.Textbox(visible=False), gr.Textbox(visible=False)

    def restore(kept: str, noted: str, request: gr.Request) -> Updates:
        run_id, _ = read_note(noted)
        if from_query(dict(request.query_params)) or (run_id and drawing.runs.get(run_id) is None):
            return {controls[0]: gr.skip()}
        return fill(tab, read_form(kept), drawing.holder)[0] or {controls[0]: gr.skip()}

    page.load(restore, [kept, noted], controls, js=KEPT % (tab.kind, tab.kind), **CHECKED)
    gr.on(
        [one.change for one in controls],
        None,
        controls,
        js=KEEP % (tab.kind, json.dumps(names)),
        api_visibility="private",
    )


def read_form(kept: str) -> dict[str, Any]:
    """The settings that the browser kept; what is unknown, or not of its kind, is left out."""
    try:
        form = dict(json.loads(kept))
    except (ValueError, TypeError, RecursionError):
        return {}
    return from_query({name: str(value) for name, value in form.items() if value is not None}, SETTINGS)
