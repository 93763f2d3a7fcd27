"""The tab that draws a new picture over a photo."""

from __future__ import annotations

import asyncio
import io
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from stable_diffusion.request import FIT_LABELS, steps_for_strength
from ui.stage import live

from .form.controls import QUIET, Controls, Updates, Values, more_controls, prompt_controls, sampling_controls
from .form.inputs import Radio, Slider, picked
from .form.mask import backdrop, mask_painter, painted
from .form.photo import PHOTOS, SEEN, photo_input, photo_path
from .keep.files import keep
from .keep.history import History, Kept
from .runs.errors import told_on_the_page
from .runs.events import fitted_photo
from .runs.limits import prepare
from .runs.models import ModelHolder
from .stage.opening import PHOTO_EXAMPLES, cards
from .stage.sketch import sketch_switch
from .tab import Drawing, Tab, connect, run_buttons, run_view

START_HINT = "<p class='hint'>Here you will see what the run starts from: the photo, with noise.</p>"
MASK_NOTE = "What you paint over is drawn anew, all else stays as it is. At strength 1 it is drawn from noise alone."


@dataclass(frozen=True)
class PhotoTab(Tab):
    """A tab whose requests need a photo, and which lays it over what became of it."""

    compared: gr.Accordion
    slider: gr.ImageSlider

    def settings(self, values: Values) -> dict[str, Any]:
        """What the controls ask for; ValueError where that can't be meant, or the photo is missing."""
        photo_path(values[self.controls["image"]])
        mask = self.controls["mask"]
        return super().settings({**values, mask: painted(values[mask])})

    @property
    def shown(self) -> list[Block]:
        """The components that `show` updates."""
        return [*super().shown, self.compared, self.slider]

    def show(self, run: Kept) -> Updates:
        """The updates that show a run that is over, its photo too, for as long as the upload is kept."""
        if not Path(str(run.request.image)).exists():
            return {**super().show(run), self.compared: gr.Accordion(visible=False)}
        buffer = io.BytesIO()
        fitted_photo(run.request).save(buffer, "PNG")
        photo = keep("photo.png", buffer.getvalue())
        return {**super().show(run), self.compared: gr.Accordion(visible=True), self.slider: (photo, run.files[0])}


def image2image(drawing: Drawing, history: History, model: gr.Dropdown, opened: gr.Tab) -> Tab:
    """Build the tab and make it work; `opened` is where it is placed."""
    holder = drawing.holder
    kind = "i2i"
    with gr.Row(equal_height=False, elem_classes="areas"):
        with gr.Column(elem_classes="ask"):
            controls = photo_controls(kind)
            controls |= prompt_controls("What it should become: a cat face on a beige background", model, holder, kind)
            sketch = sketch_switch(kind)
        buttons = run_buttons(kind)
        with gr.Column(elem_classes="view"):
            view = run_view(kind, buttons)
            with gr.Accordion("Before and after", open=False, visible=False) as compared:
                slider = gr.ImageSlider(
                    show_label=False,
                    format="png",
                    type="filepath",
                    buttons=["fullscreen"],
                    interactive=False,
                    elem_id=f"{kind}-slider",
                )
        with gr.Column(elem_classes="settings"):
            controls |= strength_controls(holder, kind)
            controls |= sampling_controls(holder.defaults, kind)
            controls |= more_controls(holder.defaults, kind, controls, holder.limits)
    reuse, start, steps_note, photos = (controls.pop(name) for name in ("_reuse", "_start", "_steps", "_photos"))
    controls["prompt"].value = PHOTO_EXAMPLES[0][1]
    tab = PhotoTab(kind, controls | {"model": model}, view, history, sketch, compared, slider)
    connect(tab, drawing, reuse)
    connect_start(tab, holder, opened, start, steps_note)

    def pick(event: gr.SelectData) -> tuple[str, str]:
        name, text = picked(event, PHOTO_EXAMPLES)
        return str(PHOTOS / name), text

    chosen = photos.select(pick, None, [controls["image"], controls["prompt"]], **QUIET)
    chosen.then(None, js=SEEN, api_visibility="private")
    return tab


def photo_controls(kind: str) -> Controls:
    """The photo, and which part of it is drawn anew."""
    photo = photo_input(
        value=str(PHOTOS / PHOTO_EXAMPLES[0][0]),
        label="Photo",
        sources=["upload", "clipboard", "webcam"],
        height=200,
        elem_id=f"{kind}-photo",
    )
    photos = cards([(PHOTOS / name, text) for name, text in PHOTO_EXAMPLES], "Or one of these", f"{kind}-photos")
    with gr.Accordion("Change only a part", open=False) as part:
        gr.Markdown(MASK_NOTE, elem_classes="note")
        mask = mask_painter(f"{kind}-mask")
    gr.on([part.expand, photo.change], backdrop, photo, mask, **QUIET)
    return {"image": photo, "mask": mask, "_photos": photos}


def strength_controls(holder: ModelHolder, kind: str) -> Controls:
    """How much of the photo is replaced, what that leaves of it, and how it is fitted."""
    strength = Slider(
        0.05,
        1,
        value=holder.defaults.strength,
        step=0.05,
        label="Strength",
        info="Low: stay close to the photo. High: follow the prompt",
        elem_id=f"{kind}-strength",
    )
    steps = gr.Markdown(elem_id=f"{kind}-runs", elem_classes="note")
    start = gr.HTML(START_HINT, elem_id=f"{kind}-start")
    fits = [(label, name) for name, label in FIT_LABELS.items()]
    fit = Radio(fits, value="crop", label="Fit the photo", elem_id=f"{kind}-fit")
    return {"strength": strength, "fit": fit, "_steps": steps, "_start": start}


STARTS = ("image", "fit", "strength", "num_inference_steps", "width", "height")
"""The settings that change what a run starts from."""


def connect_start(tab: Tab, holder: ModelHolder, opened: gr.Tab, start: gr.HTML, steps_note: gr.Markdown) -> None:
    """Show, as the controls move, how many steps will run and what they start from."""
    controls, defaults, turn = tab.controls, holder.defaults, asyncio.Semaphore(1)

    def describe(strength: float, steps: int) -> str:
        runs = steps_for_strength(steps, strength)
        return f"Runs **{runs} of {steps} steps**, starting from the photo with noise."

    steps_inputs = [controls["strength"], controls["num_inference_steps"]]
    gr.on([component.change for component in steps_inputs], describe, steps_inputs, steps_note, **QUIET)
    steps_note.value = describe(defaults.strength, defaults.num_inference_steps)

    async def draw(values: Values) -> str:
        if values[controls["image"]] is None:
            return START_HINT
        with told_on_the_page():
            settings = tab.settings({**values, controls["mask"]: None})
            async for _ in holder.wait(settings["model"]):
                pass
            async with turn:
                return await asyncio.to_thread(start_view, holder, settings)

    gr.on(
        [opened.select, *(controls[name].change for name in STARTS)],
        draw,
        {one for name, one in controls.items() if name != "mask"},  # it is sent anew at every event that reads it
        start,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_visibility="private",
    )


def start_view(holder: ModelHolder, settings: dict[str, Any]) -> str:
    """The fitted photo, the noisy picture that a run starts from, and what the network sees in it, as HTML."""
    # The start of a run whose seed is left to chance is shown with one that stays. Without words, the first x_0 is of
    # the photo, not of what shall become of it.
    changes = {
        "seed": max(0, settings["seed"] or 0),
        "num_images": 1,
        "prompt": "",
        "guidance_scale": 1,
        "preview": "none",
    }
    pipeline, request = prepare(holder, settings | changes)
    with closing(pipeline.stream(request)) as steps:
        step = next(steps).decoded()
    assert step.images is not None
    pictures = (fitted_photo(request), step.noisy()[0], step.images[0])
    left = (step.level.alpha / step.level.scale) ** 2
    captions = (
        "The photo as it is used",
        f"The run starts here: {left:.1%} photo, the rest noise",
        "What the network still sees of the photo",
    )
    figures = (
        f'<figure><img src="{live.data_uri(picture)}" alt=""><figcaption>{caption}</figcaption></figure>'
        for picture, caption in zip(pictures, captions, strict=True)
    )
    return f'<div class="start">{"".join(figures)}</div>'
