"""Drawing while the form changes: a few quick steps at each change, on the stage only, and no file is kept."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from stable_diffusion.request import Request, RequestError
from ui.stage import live

from .form.controls import CHECKED, QUIET, Updates, Values
from .keep.history import FinishedRun
from .runs.cost import SKETCH_STEPS, is_quick
from .runs.errors import explain
from .runs.events import Event, Waiting
from .runs.prepare import check
from .runs.registry import new_run_id
from .runs.visitors import Visitor, visitor_of
from .tab import Services, SketchState, Tab

REST = 10.0
"""Seconds without sketches after one had to wait in the queue."""
ABOUT = "Five quick steps at every change; Enter draws the picture in full"
SLOW = f"With this model {SKETCH_STEPS} steps take too long here to follow your typing"
CROWDED = "Many people are drawing now: sketches go on when there is room"
CAPTION = "A sketch in five steps. Enter draws it in full."


def sketch_switch(kind: str) -> gr.Checkbox:
    """Return the switch, off and disabled until the speed of the model is known."""
    return gr.Checkbox(False, label="Draw while I type", info=ABOUT, interactive=False, elem_id=f"{kind}-sketch")


def connect_sketch(tab: Tab, services: Services, page: gr.Blocks) -> None:
    """Sketch the form's request whenever the visitor changes prompt or strength."""
    view, switch, backend, models = tab.view, tab.sketch, services.backend, services.models
    model = tab.controls["model"]
    changing = [tab.controls[name] for name in ("prompt", "strength") if name in tab.controls]
    changes = [control.input for control in changing]

    async def draw(values: Values, visitor: gr.Request) -> AsyncIterator[Updates]:
        yield {view.live: gr.skip()}  # an event that yields nothing would empty all of its outputs
        sketch, run = values[view.sketch], services.registry.get(values[view.run_id])
        busy = run is not None and run.page is not None
        pipeline = models.loaded(values[model])
        if busy or pipeline is None or time.monotonic() < sketch.rests_until:
            return
        if not values[switch] or not values[tab.controls["prompt"]].strip():
            return
        if not await asyncio.to_thread(is_quick, pipeline):
            yield {switch: gr.Checkbox(value=False, info=SLOW)}
            return
        try:
            request = quick_request(tab.request(values), values[view.last])
            await asyncio.to_thread(check, models, request)
        except RequestError:  # the form is not finished; Generate shows the message
            return
        sketch.run_id, sketch.drawn = new_run_id(), tuple(values[control] for control in changing)
        async with aclosing(pictures(sketch, request, visitor_of(visitor))) as updates:
            async for update in updates:
                yield update

    async def pictures(sketch: SketchState, request: Request, owner: Visitor) -> AsyncGenerator[Updates]:
        run_id = sketch.run_id
        try:
            async with aclosing(backend.stream(run_id, request, owner)) as stream:
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
                            view.live: live.sketch(news.x_0, request.prompt, CAPTION),
                            view.after: gr.Row(visible=False),
                            view.results: gr.Gallery(visible=False),
                            switch: gr.Checkbox(info=ABOUT),
                        }
        except Exception as error:
            explain(error)  # for the log; Generate shows the message

    def leave(sketch: SketchState, *now: Any) -> None:
        if sketch.drawn != now:
            backend.stop(sketch.run_id)

    # The next sketch begins when the one under way ends, and a stale one ends with its step.
    gr.on(changes, leave, [view.sketch, *changing], None, trigger_mode="multiple", **QUIET)

    gr.on(
        [*changes, switch.input],
        draw,
        {*tab.controls.values(), switch, view.sketch, view.run_id, view.last},
        [view.live, view.after, view.results, switch],
        trigger_mode="always_last",
        **CHECKED,
    )

    async def suit(name: str) -> gr.Checkbox:
        pipeline = await models.wait_if_loading(name)
        quick = pipeline is not None and await asyncio.to_thread(is_quick, pipeline)
        return gr.Checkbox(value=quick, interactive=True)

    page.load(suit, model, switch, **CHECKED)


def quick_request(request: Request, last: FinishedRun | None) -> Request:
    """Return the request of a sketch: few steps, one image, and a seed that stays, so that only the change is seen."""
    seed = request.seed
    if seed is None:
        seed = 0 if last is None else last.request.seed
    # With a photo, strength leaves so many of these steps.
    steps = SKETCH_STEPS if request.image is None else math.ceil(SKETCH_STEPS / (request.strength or 1))
    return request.with_values(seed=seed, num_inference_steps=steps, num_images=1, preview="none")
