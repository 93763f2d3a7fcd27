"""The page: a heading, the tabs, and the endpoints for programs."""

from __future__ import annotations

from copy import copy
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.data_classes import PredictBodyInternal
from gradio.state_holder import SessionState

from stable_diffusion.images import read_few_formats

from .api import add_endpoints
from .form.inputs import place
from .form.model_menu import connect_menu, model_menu, model_note
from .image2image import image2image
from .inside import build_inside
from .keep.files import DAY, HOUR, UPLOADS
from .keep.history import History
from .restore import connect_file, connect_history, connect_inside, connect_link, connect_text, connect_use
from .resume import connect_form, connect_run, connect_visit
from .runs.backend import Backend
from .runs.errors import errors_on_page
from .runs.limits import QUEUE_SIZE
from .runs.message_rate import MessageRate
from .runs.models import LoadedModels
from .runs.registry import Registry
from .sketch import connect_sketch
from .stage.film import FILMS
from .tab import Services
from .text2image import text2image
from .web.bodies import bound_uploads
from .web.calls import bad_argument, read_addresses

MAX_VISIT_EVENTS = 24
"""Events of one visit that wait for their turn; the page loads with fewer than ten."""
MAX_QUEUED = 128 * 2**20
"""Bytes in the bodies of all calls that wait or are answered."""
TITLE = "Stable Diffusion, live"
PROMISE = "Watch a picture come out of noise."


class Page(gr.Blocks):
    """Blocks with a bounded queue, whose events refuse values of the wrong form in a sentence."""

    def queue(self, *args: Any, **options: Any) -> gr.Blocks:
        """Set the queue up. The constructor of `Blocks` calls this; a second call would build all routes again.

        Closes the routes that compute at once, past the queue.
        """
        super().queue(*args, **options | {"max_size": QUEUE_SIZE, "api_open": False})
        push = self._queue.push

        async def push_checked(body: PredictBodyInternal, request: Any, username: str | None) -> Any:
            """Queue an event, but refuse an empty session_hash, which would make Gradio fail at the next event.

            Events keep their calls in memory until they end: refuse one that is too many bytes for all together.
            """
            if body.session_hash == "":
                return False, "session_hash must not be empty: choose any name for the visit", "error"
            waiting = [event for one in self._queue.event_queue_per_concurrency_id.values() for event in one.queue]
            if sum(event.session_hash == body.session_hash for event in waiting) >= MAX_VISIT_EVENTS:
                return False, "Much of what you pressed is still waiting: press again when it is done.", "queue_full"
            requests = [request, *(event.request for event in self._queue.event_ids_to_events.values())]
            if sum(one.scope.get("size", 0) for one in requests) > MAX_QUEUED:
                return False, "The page is busy with large calls: upload files, or try again later.", "queue_full"
            return await push(body, request, username)

        self._queue.push = push_checked  # type: ignore[method-assign]
        return self

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Answer an event. Of the data that the browser sends about it, keep the clicked element's index."""
        event = options.get("event_data")
        if event is not None:
            options["event_data"] = gr.EventData(event.target, {"index": place(event._data), "value": None})
        with errors_on_page():
            try:
                return await super().process_api(*args, **options)
            finally:
                forget_values(options["state"])

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **options: Any) -> list[Any]:
        """Return the values that an event gets. Raises gr.Error for values of the wrong form and foreign addresses."""
        try:
            read_addresses(inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except gr.Error as error:
            error.print_exception = False  # Gradio's own refusals of a file's type would log a traceback
            raise
        except Exception as error:  # a value in the place of a file makes Gradio raise nearly anything
            raise bad_argument(error) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: SessionState | None) -> list[Any]:
        """Return the outputs of an event. Of those that it skips, Gradio would build component and JSON schema anew."""
        if not isinstance(predictions, dict) or not all(isinstance(key, Block) for key in predictions):
            return await super().postprocess_data(block_fn, predictions, state)
        skipped = gr.skip()
        updated = [block for block in block_fn.outputs if predictions.get(block, skipped) != skipped]
        values = [predictions[block] for block in updated]
        part = copy(block_fn)
        part.outputs = updated
        outputs = await super().postprocess_data(part, values[0] if len(values) == 1 else values, state)
        found = dict(zip(updated, outputs, strict=True))
        return [found.get(block, None if block.stateful else skipped) for block in block_fn.outputs]


def forget_values(state: SessionState) -> None:
    """Drop the values that Gradio keeps of every component of a visit for its deep links, which this page has not."""
    for config in state.config_values.values():
        config["props"]["value"] = None


def build_page(models: LoadedModels, backend: Backend) -> gr.Blocks:
    """Build the whole page around models that may still be loading, and the backend that draws with them."""
    read_few_formats()
    bound_uploads()
    services = Services(models, backend, Registry(), MessageRate())
    # Results stay for a day, for their visitors to download; previews never become files.
    with Page(title=TITLE, delete_cache=(HOUR, DAY), analytics_enabled=False, fill_width=True) as page:
        history = History()
        with gr.Row(elem_id="top"):
            with gr.Column(elem_id="heading"):
                gr.Markdown(f"# {TITLE}\n{PROMISE}")
                note = gr.Markdown(model_note(models), elem_id="model-note")
            menu = model_menu(models)
        with gr.Tabs(elem_id="tabs") as pages:
            with gr.Tab("Text2Image", id="t2i"):
                words = text2image(services, history, menu)
            with gr.Tab("Image2Image", id="i2i") as i2i:
                photos = image2image(services, history, menu, i2i)
            with gr.Tab("Inside", id="inside") as inside:
                tour, inside_run = build_inside(models, backend, services.rate, menu)
        with gr.Row(elem_id="visit"):
            with gr.Column(scale=4, min_width=320):
                history.gallery.render()
            with gr.Column(scale=1, min_width=240):
                file = gr.File(
                    label="Drop a picture made here to get its settings back",
                    file_types=["image"],
                    height=120,
                    elem_id="restore",
                )
        tabs = {tab.kind: tab for tab in (words, photos)}
        connect_menu(menu, note, models, [words.controls, photos.controls], page)
        connect_history(tabs, models, pages, history)
        connect_visit(history, services.registry, page)
        connect_file(tabs, models, pages, file)
        connect_text(tabs, models, pages)
        connect_link(tabs, models, pages, page)
        connect_use(tabs, pages)
        connect_inside(tabs, pages, inside, tour, inside_run, page)
        for tab in tabs.values():
            connect_run(tab, services, page)
            connect_form(tab, services, page)
            connect_sketch(tab, services, page)
        add_endpoints(backend, models, services.rate)
    page.temp_file_sets += [FILMS, UPLOADS]  # Gradio deletes only files of components by itself
    return page
