"""How the longer sections of the Inside tab run: load the model in nobody's way, then wait in line for a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components import Component

from ..controls import CHECKED, Values
from ..errors import told_on_the_page
from ..models import ModelHolder

QUEUE = "inside"
"""The line of this tab's runs, which an engine does not draw: one at a time."""


def connect_lane(
    holder: ModelHolder,
    menu: gr.Dropdown,
    buttons: tuple[gr.Button, gr.Button],
    function: Callable[[Values], Iterator[Any]],
    inputs: set[Component],
    view: gr.HTML,
) -> None:
    """Let the first button run `function`, whose values `view` shows; and let the second stop it, or its waiting."""
    start, stop = buttons

    async def load(model: str, progress: gr.Progress = gr.Progress()) -> None:  # noqa: B008
        with told_on_the_page():
            async for text, share in holder.wait(model):
                progress(share, desc=text)

    def run(values: Values) -> Iterator[Any]:
        with told_on_the_page():
            yield from function(values)

    loading = start.click(load, menu, None, **{**CHECKED, "show_progress": "minimal"}, show_progress_on=view)
    running = loading.success(
        run,
        inputs,
        view,
        show_progress="minimal",
        concurrency_id=QUEUE,
        concurrency_limit=1,
        api_visibility="private",
    )
    stop.click(None, cancels=[loading, running], queue=False, api_visibility="private")
