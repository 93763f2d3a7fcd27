"""The page: a heading, the tabs, and the endpoints for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import PredictBodyInternal

from .api import add_endpoints
from .form.browser_storage import connect_stay
from .form.inputs import place
from .form.mask import MASKS
from .form.model_menu import connect_menu, model_menu
from .form.restore import connect_file, connect_history, connect_inside, connect_link, connect_use
from .image2image import image2image
from .inside import build_inside
from .keep.files import DAY, HOUR
from .keep.history import History
from .runs.backend import Backend
from .runs.errors import told_on_the_page
from .runs.limits import QUEUE_SIZE
from .runs.models import ModelHolder
from .runs.registry import Runs
from .runs.resume import connect_resume
from .stage.film import FILMS
from .stage.sketch import connect_sketch
from .tab import Drawing
from .text2image import text2image
from .web.guard import no_argument

HERE = Path(__file__).parent
TITLE = "Stable Diffusion, live"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


class Page(gr.Blocks):
    """Blocks with a bounded queue from the start: calling `queue` once more would build all routes again."""

    def queue(self, *args: Any, **options: Any) -> gr.Blocks:
        """What `Blocks` calls when it is made. Closed: the routes that compute at once, beside the line."""
        super().queue(*args, **options | {"max_size": QUEUE_SIZE, "api_open": False})
        push = self._queue.push

        async def push_named(body: PredictBodyInternal, request: Any, username: str | None) -> Any:
            """Put an event into the line. One of a visit whose name is empty would make Gradio fail at the next."""
            if body.session_hash == "":
                return False, "session_hash must not be empty: choose any name for the visit", "error"
            return await push(body, request, username)

        self._queue.push = push_named  # type: ignore[method-assign]
        return self

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The answer to an event. Of what the browser says about it, the place of a click alone is read."""
        event = options.get("event_data")
        if event is not None:
            options["event_data"] = gr.EventData(event.target, {"index": place(event._data), "value": None})
        with told_on_the_page():
            return await super().process_api(*args, **options)

    async def preprocess_data(self, *args: Any, **options: Any) -> list[Any]:
        """The values that an event gets; what can't be one is refused in a sentence."""
        try:
            return await super().preprocess_data(*args, **options)
        except gr.Error:
            raise
        except Exception as error:  # a file that is none makes Gradio raise nearly anything
            raise no_argument(error) from None


def build_page(holder: ModelHolder, backend: Backend) -> gr.Blocks:
    """Build the whole page around models that may still be loading, and what draws with them."""
    drawing = Drawing(holder, backend, Runs())
    # Results stay for a day, for their visitors to download; previews never become files.
    with Page(title=TITLE, delete_cache=(HOUR, DAY), analytics_enabled=False, fill_width=True) as page:
        history = History()
        with gr.Row(elem_id="top"):
            with gr.Column(elem_id="heading"):
                gr.Markdown(f"# {TITLE}")
                note = gr.Markdown(holder.draws(), elem_id="model-note")
            menu = model_menu(holder)
        with gr.Tabs(elem_id="tabs") as pages:
            with gr.Tab("Text2Image", id="t2i"):
                words = text2image(drawing, history, menu)
            with gr.Tab("Image2Image", id="i2i") as opened:
                photos = image2image(drawing, history, menu, opened)
            with gr.Tab("Inside", id="inside"):
                inside = build_inside(holder, menu)
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
        connect_menu(menu, note, holder, [words, photos], page)
        connect_history(tabs, holder, pages, history)
        connect_file(tabs, holder, pages, file)
        connect_link(tabs, holder, pages, page)
        connect_use(tabs, pages)
        connect_inside(tabs["t2i"], pages, inside)
        for tab in tabs.values():
            connect_resume(tab, drawing, page)
            connect_stay(tab, drawing, page)
            connect_sketch(tab, drawing, page)
        add_endpoints(backend)
    page.temp_file_sets += [FILMS, MASKS]  # what no component shows, Gradio would not delete
    return page


def look() -> dict[str, Any]:
    """How the page looks, as arguments of `Blocks.launch`; all of it is served from here, none by another host."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=FONTS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        # Base is paler than 4.5 to 1 in these.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_label_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
        color_accent="*primary_700",
        link_text_color="*primary_800",
        link_text_color_dark="*primary_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        # A warm page, with white cards on it.
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        background_fill_secondary="white",
        background_fill_secondary_dark="*neutral_900",
        block_shadow="0 1px 2px rgb(0 0 0 / 5%)",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
    )
    keys = (HERE / "keys.js").read_text(encoding="utf-8")
    return {"theme": theme, "css_paths": HERE / "style.css", "head": f"<script>{keys}</script>"}
