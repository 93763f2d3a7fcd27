"""Sketches: a few quick steps at each change of the form, shown on the stage and not kept."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from .form.controls import CHECKED, QUIET, Updates, Values
from .keep.history import FinishedRun
from .runs.errors import explain
from .runs.events import Event, Waiting
from .runs.limits import check_work
from .runs.pace import SKETCH_STEPS, is_quick
from .runs.registry import new_run_id
from .stage import live
from .tab import Drawing, Sketch, Tab

REST = 10.0
"""Seconds without sketches after one had to wait for its turn."""
INFO = "Five quick steps at every change; Enter draws the picture in full"
SLOW = f"With this model {SKETCH_STEPS} steps take too long here to follow your typing"
CROWDED = "Many people are drawing now: sketches go on when there is room"
STATUS = "A sketch in five steps. Enter draws it in full."


def sketch_switch(kind: str) -> gr.Checkbox:
    """Build the switch, off and disabled until the model's pace is known."""
    return gr.Checkbox(False, label="Draw while I type", info=INFO, interactive=False, elem_id=f"{kind}-sketch")


def connect_sketch(tab: Tab, drawing: Drawing, page: gr.Blocks) -> None:
    """Sketch the form whenever the visitor, and not another event, changes prompt or strength."""
    view, switch, backend, holder = tab.view, tab.sketch, drawing.backend, drawing.holder
    model = tab.controls["model"]
    changing = [tab.controls[name] for name in ("prompt", "strength") if name in tab.controls]
    changes = [control.input for control in changing]

    async def draw(values: Values, visitor: gr.Request) -> AsyncIterator[Updates]:
        yield {view.live: gr.skip()}  # an event that never answers empties all that it could have changed
        sketch, run = values[view.sketched], drawing.runs.get(values[view.run_id])
        busy = run is not None and run.page is not None
        pipeline = holder.loaded(values[model])
        if busy or pipeline is None or time.monotonic() < sketch.rests_until:
            return
        if not values[switch] or not values[tab.controls["prompt"]].strip():
            return
        if not await asyncio.to_thread(is_quick, pipeline):
            yield {switch: gr.Checkbox(value=False, info=SLOW)}
            return
        try:
            settings = sketch_settings(tab.settings(values), values[view.last])
            check_work(holder, settings)
        except ValueError:  # a form that is not finished: Generate says what is wrong with it
            return
        sketch.run_id, sketch.drawn = new_run_id(), tuple(values[control] for control in changing)
        async with aclosing(pictures(sketch, settings, visitor.session_hash)) as updates:
            async for update in updates:
                yield update

    async def pictures(sketch: Sketch, settings: dict[str, Any], owner: str | None) -> AsyncGenerator[Updates]:
        run_id = sketch.run_id
        try:
            async with aclosing(backend.stream(run_id, settings, owner or run_id)) as stream:
                async for news in stream:
                    if isinstance(news, Waiting) and news.position:
                        backend.stop(run_id)
                        sketch.rests_until = time.monotonic() + REST
                        yield {switch: gr.Checkbox(info=CROWDED)}
                    elif (
                        isinstance(news, Event)
                        and news.x_0 is not None
                        and sketch.run_id == run_id
                        and not news.stopped
                    ):
                        sketch.seed = news.seed
                        yield {
                            view.live: live.sketch(news.x_0, settings["prompt"], STATUS),
                            view.after: gr.Row(visible=False),
                            view.results: gr.Gallery(visible=False),
                            view.files: gr.File(visible=False),
                            switch: gr.Checkbox(info=INFO),
                        }
        except Exception as error:
            explain(error)  # for the log alone: the visitor reads it when the picture is drawn in full

    def leave(sketch: Sketch, *now: Any) -> None:
        if sketch.drawn != now:
            backend.stop(sketch.run_id)

    # The next sketch begins when the current one is over; a stale one is over with its step.
    gr.on(changes, leave, [view.sketched, *changing], None, trigger_mode="multiple", **QUIET)

    gr.on(
        [*changes, switch.input],
        draw,
        {*tab.controls.values(), switch, view.sketched, view.run_id, view.last},
        [view.live, view.after, view.results, view.files, switch],
        trigger_mode="always_last",
        **CHECKED,
    )

    async def suit(name: str) -> gr.Checkbox:
        pipeline = await holder.here(name)
        quick = pipeline is not None and await asyncio.to_thread(is_quick, pipeline)
        return gr.Checkbox(value=quick, interactive=True)

    page.load(suit, model, switch, **CHECKED)


def sketch_settings(settings: dict[str, Any], last: FinishedRun | None) -> dict[str, Any]:
    """Return the settings of a sketch: few steps, one picture, and a fixed seed, so that only the change is seen."""
    seed = settings["seed"]
    if seed is None or seed < 0:
        seed = 0 if last is None else last.request.seed
    steps = math.ceil(SKETCH_STEPS / settings.get("strength", 1))  # SKETCH_STEPS of them are left at that strength
    return {**settings, "seed": seed, "num_inference_steps": steps, "num_images": 1, "preview": "none"}
