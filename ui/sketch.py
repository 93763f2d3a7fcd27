"""Drawing while the form changes: a few quick steps at each change, on the stage only, and no file is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import gradio as gr
from PIL import Image

from stable_diffusion.request import Defaults, Request, RequestError, steps_that_leave
from ui.stage import live

from .form.controls import CHECKED, QUIET, SAMPLED, Updates, Values
from .form.prompt import DRAW_WHILE_TYPING
from .keep.history import FinishedRun
from .runs.cost import SKETCH_STEPS, is_quick
from .runs.errors import explain
from .runs.events import Event, Waiting
from .runs.prepare import check, read_pictures
from .runs.registry import new_run_id
from .runs.visitors import Visitor, visitor_of
from .tab import PAUSE, Services, SketchState, Tab

REST = 10.0
"""Seconds without sketches after one had to wait in the queue."""
SLOW = "This model is too slow here to draw while you type"
CROWDED = "Many people are drawing now: sketches pause"
CAPTION = "A sketch. Enter draws it in full."


def connect_sketch(tab: Tab, services: Services, page: gr.Blocks) -> None:
    """Sketch the form's request whenever the visitor changes prompt or strength.

    A sketch under way is drawn to its end: of the changes meanwhile, the newest is sketched next.
    """
    view, switch, backend, models = tab.view, tab.sketch, services.backend, services.models
    model = tab.controls["model"]
    changes = [tab.controls[name].input for name in ("prompt", "strength") if name in tab.controls]

    async def draw(values: Values, visitor: gr.Request) -> AsyncIterator[Updates]:
        yield {view.live: gr.skip()}  # an event that yields nothing would empty all of its outputs
        sketch, run = values[view.sketch], services.registry.get(values[view.run_id])
        busy = run is not None and run.page is not None
        pipeline, form = models.loaded(values[model]), tab.form(values)
        if busy or pipeline is None or form == sketch.drawn or time.monotonic() < sketch.rests_until:
            return
        if not values[switch] or not values[tab.controls["prompt"]].strip():
            return
        defaults = await asyncio.to_thread(models.defaults, values[model])
        if not await asyncio.to_thread(is_quick, pipeline, defaults.sketch_side):
            yield {switch: gr.Checkbox(value=False, label=SLOW)}
            return
        sketch.run_id = run_id = new_run_id()
        try:
            request = quick_request(tab.request(values), values[view.last], defaults)
            await asyncio.to_thread(check, models, request)
            request = await asyncio.to_thread(read_once, sketch, request, defaults)
        except RequestError:  # the form is not finished; Generate shows the message
            return
        if sketch.run_id != run_id:  # Generate was pressed, or the switch went off
            return
        async with aclosing(pictures(sketch, request, visitor_of(visitor))) as updates:
            async for update in updates:
                yield update
        if sketch.run_id == run_id:
            sketch.drawn = form

    async def pictures(sketch: SketchState, request: Request, owner: Visitor) -> AsyncGenerator[Updates]:
        run_id = sketch.run_id
        over = request.image
        photo = await asyncio.to_thread(live.data_uri, over) if isinstance(over, Image.Image) else None
        # The stage shows the sketch alone, without the tools of the picture before.
        cleared: Updates = {
            view.after: gr.Row(visible=False),
            view.results: gr.Gallery(visible=False),
            switch: gr.Checkbox(label=DRAW_WHILE_TYPING),
        }
        try:
            with services.rate.stream(PAUSE) as due:
                async with aclosing(backend.stream(run_id, request, owner)) as stream:
                    async for news in stream:
                        if sketch.run_id != run_id:
                            backend.stop(run_id, pictures=False)
                        elif isinstance(news, Waiting) and news.position:
                            backend.stop(run_id, pictures=False)
                            sketch.rests_until = time.monotonic() + REST
                            yield {switch: gr.Checkbox(label=CROWDED)}
                        elif isinstance(news, Event) and news.x_0 and not news.stopped and (news.images or due()):
                            sketch.seed = news.seed
                            yield {view.live: live.sketch(news.x_0, request.prompt, CAPTION, photo), **cleared}
                            cleared = {}
        except Exception as error:
            explain(error)  # for the log; Generate shows the message

    def end(sketch: SketchState, on: bool) -> None:
        if not on:
            backend.stop(sketch.run_id, pictures=False)
            sketch.run_id = ""

    switch.input(end, [view.sketch, switch], None, trigger_mode="multiple", **QUIET)

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
        if pipeline is None:
            return gr.Checkbox(value=False, interactive=True)
        defaults = await asyncio.to_thread(models.defaults, name)
        quick = await asyncio.to_thread(is_quick, pipeline, defaults.sketch_side)
        return gr.Checkbox(value=quick, interactive=True)

    page.load(suit, model, switch, **CHECKED)


def quick_request(request: Request, last: FinishedRun | None, defaults: Defaults) -> Request:
    """Return the request of a sketch: few steps, one small image, and a seed that stays, so that the change is seen.

    request: the form's, with width and height. last: the run that the tab shows. defaults: the model's. A model with
    weights for few steps draws its sketches by these, unless there is a negative prompt, which they can't keep to.
    """
    seed = request.seed
    if seed is None:
        seed = 0 if last is None else last.request.seed
    fast = defaults.fast and not request.negative_prompt.strip()
    # With a photo, strength leaves so many of these steps.
    steps = SKETCH_STEPS if request.image is None else steps_that_leave(SKETCH_STEPS, request.strength or 1)
    own = {**dict.fromkeys(SAMPLED), "schedule": "model"} if fast else {"num_inference_steps": steps}
    width, height = small_size(request, defaults)
    changes = {"seed": seed, "num_images": 1, "preview": None, "preview_every": 1, "fast": fast, **own}
    return request.with_values(width=width, height=height, then="", **changes)


def small_size(request: Request, defaults: Defaults) -> tuple[int, int]:
    """Return width and height of a sketch: about the request's proportions, where the model draws them well."""
    side, unit = defaults.sketch_side, defaults.size_unit
    if defaults.own_size_only:
        return side, side
    assert request.width is not None
    assert request.height is not None
    scale = min(1, side / min(request.width, request.height))
    width, height = (max(1, round(one * scale / unit)) * unit for one in (request.width, request.height))
    return width, height


def read_once(sketch: SketchState, request: Request, defaults: Defaults) -> Request:
    """Return the request complete, with the pictures of the sketch before if it has the same files.

    Reads files: not for an event loop. Raises `RequestError` for a file that is no picture.
    """
    files = (request.image, request.mask, request.fit, request.width, request.height)
    if sketch.files == files:
        return defaults.complete(request.with_values(image=sketch.photo, mask=sketch.mask))
    request = read_pictures(request, defaults)
    sketch.files, sketch.photo, sketch.mask = files, request.image, request.mask
    return request
