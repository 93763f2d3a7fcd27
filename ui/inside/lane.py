"""How the longer sections of the tab Inside run: load the model, then wait in a queue for a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import gradio as gr
from gradio.components import Component

from ..form.controls import CHECKED, QUIET, Values
from ..runs.errors import errors_on_page
from ..runs.models import LoadedModels

QUEUE = "inside"
"""The queue of this tab's runs, one at a time: no engine draws them."""

Buttons = tuple[gr.Button, gr.Button]
"""The start button of a section, and its stop button."""


def lane_buttons(text: str, elem_id: str) -> Buttons:
    """Build the buttons of a section; ui/keys.js finds them by their classes."""
    start = gr.Button(text, variant="primary", elem_id=elem_id, elem_classes="generate", scale=3)
    stop = gr.Button("Stop", interactive=False, elem_id=f"{elem_id}-stop", elem_classes="stop", scale=1, min_width=90)
    return start, stop


def connect_lane(
    models: LoadedModels,
    menu: gr.Dropdown,
    buttons: Buttons,
    function: Callable[[Values], Iterator[Mapping[str, object]]],
    inputs: set[Component],
    view: gr.HTML,
) -> None:
    """Let the first button run `function`, whose values `view` shows, and let the second stop it or its waiting."""
    start, stop = buttons

    def busy() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def idle() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    async def load(model: str, progress: gr.Progress = gr.Progress()) -> None:  # noqa: B008
        with errors_on_page():
            async for text, share in models.wait(model):
                progress(share, desc=text)

    def run(values: Values) -> Iterator[Mapping[str, object]]:
        with errors_on_page():
            yield from function(values)

    pressed = start.click(busy, None, [start, stop], **QUIET)
    loading = pressed.then(load, menu, None, **{**CHECKED, "show_progress": "minimal"}, show_progress_on=view)
    running = loading.success(
        run,
        inputs,
        view,
        show_progress="minimal",
        concurrency_id=QUEUE,
        concurrency_limit=1,
        api_visibility="private",
    )
    for over in (loading.failure, running.then, running.failure):  # `then` alone does not follow a failure
        over(idle, None, [start, stop], **QUIET)
    stop.click(idle, None, [start, stop], cancels=[loading, running], **QUIET)
