"""Drawing while the form changes: a few quick steps at each change, on the stage alone, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.stage import live

from ..form.controls import CHECKED, QUIET, Updates, Values
from ..keep.history import Kept
from ..runs.errors import explain
from ..runs.events import Event, Waiting
from ..runs.limits import check_work
from ..runs.pace import seconds_per_step
from ..tab import Drawing, Sketch, Tab

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

STEPS = 5
QUICK = 0.5
"""Seconds below which a sketch feels immediate: where it takes no longer, the switch is on by itself."""
REST = 10.0
"""Seconds without sketches after one had to wait for its turn."""
ABOUT = "Five quick steps at every change; Enter draws the picture in full"
SLOW = f"With this model {STEPS} steps take too long here to follow your typing"
CROWDED = "Many are drawing now: it goes on when there is room"
TOLD = "A sketch in five steps. Enter draws it in full."


def sketch_switch(kind: str) -> gr.Checkbox:
    """The switch, off and out of reach until it is known how fast the model is here."""
    return gr.Checkbox(False, label="Draw while I type", info=ABOUT, interactive=False, elem_id=f"{kind}-sketch")


def connect_sketch(tab: Tab, drawing: Drawing, page: gr.Blocks) -> None:
    """Sketch what the form says whenever the visitor, and nobody else, changes prompt or strength."""
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
            settings = sketched(tab.settings(values), values[view.last])
            check_work(holder, settings)
        except ValueError:  # a form that is not finished: Generate says what is wrong with it
            return
        sketch.run_id, sketch.drawn = live.new_run(), tuple(values[control] for control in changing)
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
                            view.live: live.sketch(news.x_0, settings["prompt"], TOLD),
                            view.after: gr.Row(visible=False),
                            view.results: gr.Gallery(visible=False),
                            view.files: gr.File(visible=False),
                            switch: gr.Checkbox(info=ABOUT),
                        }
        except Exception as error:
            explain(error)  # to the log: whoever wants the picture is told when it is drawn in full

    def leave(sketch: Sketch, *now: Any) -> None:
        if sketch.drawn != now:
            backend.stop(sketch.run_id)

    # The next sketch comes when the one under way is over; one that is stale is over with its step.
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


def sketched(settings: dict[str, Any], last: Kept | None) -> dict[str, Any]:
    """The settings of a sketch: few steps, one picture, and a seed that stays, so that only the change is seen."""
    seed = settings["seed"]
    if seed is None or seed < 0:
        seed = 0 if last is None else last.request.seed
    steps = math.ceil(STEPS / settings.get("strength", 1))  # of which the strength leaves so many
    return {**settings, "seed": seed, "num_inference_steps": steps, "num_images": 1, "preview": "none"}


def is_quick(pipeline: Pipeline) -> bool:
    """Whether a sketch by that model feels immediate here."""
    try:
        return STEPS * seconds_per_step(pipeline) < QUICK
    except Exception as error:  # the model's usual settings can't be drawn with it: whoever does so is told
        explain(error)
        return False
