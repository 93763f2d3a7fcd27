"""What the two tabs have in common: Generate and Stop, the live view, and the pictures to keep."""

from __future__ import annotations

import html
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from . import live
from .controls import Controls
from .models import ModelHolder
from .request import Request
from .run import dropped_text, run

QUEUE = "run"
"""The one line in which all runs wait, of both tabs and of programs."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For the small events between components."""

Values = dict[Component, Any]


@dataclass
class Tab:
    """One tab's components, and what is going on in it."""

    kind: str
    controls: Controls
    generate: gr.Button
    stop: gr.Button
    live: gr.HTML
    results: gr.Gallery
    last_seed: gr.State
    stops: dict[str, threading.Event] = field(default_factory=dict)
    """For each visitor's session that runs or waits, what its Stop button sets."""

    def request(self, values: Values) -> Request:
        """The request that the controls ask for; ValueError where they can't be meant."""
        named = {name: values[component] for name, component in self.controls.items()}
        return Request(**{**named, "seed": read_seed(named["seed"])})


def run_column(kind: str) -> tuple[gr.HTML, gr.Gallery]:
    """Live view and results."""
    view = live.live_view(f"{kind}-live")
    results = gr.Gallery(
        label="Your pictures",
        format="png",
        columns=4,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        buttons=["download", "download_all", "fullscreen"],
        interactive=False,
        elem_id=f"{kind}-results",
        elem_classes="results",
        visible="hidden",
    )
    return view, results


def run_buttons(kind: str) -> tuple[gr.Button, gr.Button]:
    """Generate and Stop."""
    with gr.Row(elem_classes="run-row"):
        generate = gr.Button(
            "Generate", variant="primary", elem_id=f"{kind}-generate", elem_classes="generate", scale=3
        )
        stop = gr.Button("Stop", variant="secondary", interactive=False, elem_id=f"{kind}-stop", elem_classes="stop")
    return generate, stop


def connect(tab: Tab, holder: ModelHolder, reuse: gr.Button) -> gr.events.Dependency:
    """Make the buttons work; returns the event of the run, for what happens afterwards."""

    def begin(values: Values, request: gr.Request) -> dict[Component, Any]:
        try:
            tab.request(values)
        except ValueError as error:
            raise clear_error(error) from None
        tab.stops[request.session_hash] = threading.Event()
        text = "Waiting for your turn…" if holder.ready else "Loading the model…"
        return {
            tab.live: live.waiting("next", text),
            tab.generate: gr.Button(interactive=False),
            tab.stop: gr.Button(interactive=True),
        }

    def generate(values: Values, request: gr.Request) -> Iterator[dict[Component, Any]]:
        stopped = tab.stops.setdefault(request.session_hash, threading.Event())
        run_id = uuid.uuid4().hex
        try:
            pipeline = holder.pipeline()
            wanted = tab.request(values).for_side(pipeline.default_size)
            for name, text in dropped_text(pipeline, wanted).items():
                gr.Warning(f"{name} is too long for this model. Left out: “{html.escape(text[:300])}”")
            for event in run(pipeline, wanted, stopped.is_set):
                updates = {tab.live: live.message(run_id, event)}
                if event.images is not None:
                    updates |= {tab.results: gr.Gallery(event.images, visible=True), tab.last_seed: event.seed}
                yield updates
        except ValueError as error:
            yield {tab.live: live.failed(run_id, str(error))}
            raise clear_error(error) from None
        finally:
            tab.stops.pop(request.session_hash, None)

    def halt(request: gr.Request) -> None:
        if event := tab.stops.get(request.session_hash):
            event.set()

    inputs = set(tab.controls.values())
    started = tab.generate.click(begin, inputs, [tab.live, tab.generate, tab.stop], **QUIET)
    finished = started.success(
        generate,
        inputs,
        [tab.live, tab.results, tab.last_seed],
        concurrency_id=QUEUE,
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )
    finished.then(
        lambda: (gr.Button(interactive=True), gr.Button(interactive=False)), None, [tab.generate, tab.stop], **QUIET
    )
    tab.stop.click(halt, None, None, **QUIET)
    reuse.click(lambda seed: "" if seed is None else str(seed), tab.last_seed, tab.controls["seed"], **QUIET)
    return finished


def read_seed(text: str | None) -> int | None:
    """The seed in the text box: empty for a random one; ValueError where it is no whole number."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"seed must be a whole number, got {text[:50]!r}: leave it empty for a random one") from None


def clear_error(error: ValueError) -> gr.Error:
    """A message on the page, which reads HTML, for what is wrong with a request."""
    return gr.Error(html.escape(str(error), quote=False), title="That did not work", print_exception=False)
