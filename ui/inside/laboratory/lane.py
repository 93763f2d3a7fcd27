"""The way of a longer view to the backend: its values, and the buttons that start and stop it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from stable_diffusion.request import Request

from ...form.controls import CHECKED, QUIET, SHOW_REFUSAL, Controls, Values
from ...runs.backend import Backend, View
from ...runs.errors import errors_on_page
from ...runs.events import Waiting
from ...runs.models import LoadedModels
from ...runs.visitors import visitor_of
from .view import Value

Shown = Value | tuple[Value, Value]
"""A value of a view, or of two."""

Look = tuple[View[Any], Sequence[Request]]
"""A view of `Shown`, and the requests whose runs it shows."""


def connect_lane(
    models: LoadedModels,
    backend: Backend,
    menu: gr.Dropdown,
    buttons: tuple[gr.Button, gr.Button],
    look: Callable[[Values], Look],
    controls: Controls,
    view: gr.HTML | list[gr.HTML],
) -> None:
    """Let the first button show in `view` what `look` says, and let the second stop it or its waiting.

    view: of several, each shows its part of the values, which are tuples.
    """
    start, stop = buttons

    def busy() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=False), gr.Button(interactive=True)

    def idle() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    async def load(model: str, progress: gr.Progress = gr.Progress()) -> None:  # noqa: B008
        with errors_on_page():
            async for text, share in models.wait(model):
                progress(share, desc=text)

    async def run(
        values: Values,
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> AsyncIterator[Shown]:
        with errors_on_page(controls):
            async with aclosing(backend.inspect(*look(values), visitor_of(visitor))) as values_of_view:
                async for value in values_of_view:
                    if isinstance(value, Waiting):
                        progress(0, desc=value.text)
                    else:
                        yield value

    pressed = start.click(busy, None, [start, stop], **QUIET)
    loading = pressed.then(load, menu, None, **{**CHECKED, "show_progress": "minimal"}, show_progress_on=view)
    running = loading.success(run, set(controls.values()), view, **{**CHECKED, "show_progress": "minimal"})
    for over in (loading.failure, running.then, running.failure):  # `then` alone does not follow a failure
        over(idle, None, [start, stop], **QUIET)
    running.failure(None, js=SHOW_REFUSAL, api_visibility="private")
    stop.click(idle, None, [start, stop], cancels=[loading, running], **QUIET)
