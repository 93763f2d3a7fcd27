"""Events of the page."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
from gradio.state_holder import SessionState

from ui.page import Page


def test_an_event_builds_none_of_the_components_that_it_skips(monkeypatch):
    """Gradio builds them anew, with a JSON schema, at every step of every visitor."""
    with Page() as page:
        text, button, number = gr.Textbox("old"), gr.Button(), gr.State(1)
        event = button.click(lambda: None, None, [text, button, number])
    function = page.fns[event["id"] if isinstance(event, dict) else list(page.fns)[-1]]
    state = SessionState(page)
    built = []
    monkeypatch.setattr(gr.Button, "__init__", lambda self, *_, **__: built.append(self))

    def outputs(predictions: dict) -> list:
        with ThreadPoolExecutor(1) as pool:  # where no loop runs: in this thread, the browser's driver may have one
            return pool.submit(asyncio.run, page.postprocess_data(function, predictions, state)).result()

    assert outputs({text: "new"}) == ["new", gr.skip(), None]
    assert outputs({text: gr.skip()}) == [gr.skip(), gr.skip(), None]
    assert state[number._id] == 1
    assert outputs({number: 2, text: "newer"}) == ["newer", gr.skip(), None]
    assert state[number._id] == 2
    assert not built
