"""The tab that draws a new picture over a photo."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from stable_diffusion.request import FIT_LABELS, steps_for_strength
from ui import live

from .controls import QUIET, Controls, Updates, Values, more_controls, prompt_controls, sampling_controls
from .errors import told_on_the_page
from .files import keep
from .history import History, Kept
from .inputs import Radio, Slider
from .limits import prepare
from .models import ModelHolder
from .photo import PHOTOS, photo_input, photo_path
from .run import fitted_photo
from .tab import Tab, connect, run_buttons, run_view

# Each names the photo's background. To the included model one left out means white, and while the photo's gives way,
# things can lose their place.
EXAMPLES = (
    ("cat.jpg", "a cat face, fluent 3d style, on a beige background"),
    ("coffee.jpg", "a cup of coffee, fluent color style, on a brown background"),
    ("rocket.jpg", "a candle, fluent 3d style, on a dark blue background"),
    ("flower.jpg", "a sunflower, noto style, on a teal background"),
)


START_HINT = "<p class='hint'>Here you will see what the run starts from: the photo, with noise.</p>"


@dataclass(frozen=True)
class PhotoTab(Tab):
    """A tab whose requests need a photo, and which shows it beside what became of it."""

    slider: gr.ImageSlider

    def settings(self, values: Values) -> dict[str, Any]:
        """What the controls ask for; ValueError where that can't be meant, or the photo is missing."""
        photo_path(values[self.controls["image"]])
        return super().settings(values)

    @property
    def shown(self) -> list[Block]:
        """The components that `show` updates."""
        return [*super().shown, self.slider]

    def show(self, run: Kept) -> Updates:
        """The updates that show a run that is over, its photo too, for as long as the upload is kept."""
        if not Path(str(run.request.image)).exists():
            return {**super().show(run), self.slider: gr.ImageSlider(visible=False)}
        buffer = io.BytesIO()
        fitted_photo(run.request).save(buffer, "PNG")
        photo = keep("photo.png", buffer.getvalue())
        return {**super().show(run), self.slider: gr.ImageSlider((photo, run.files[0]), visible=True)}


def image2image(holder: ModelHolder, history: History, model: gr.Dropdown) -> Tab:
    """Build the tab and make it work."""
    kind = "i2i"
    with gr.Row(equal_height=False, elem_classes="workbench"):
        with gr.Column(scale=4, min_width=320, elem_classes="controls"):
            controls = photo_controls(holder, kind)
            controls |= prompt_controls("What it should become: a cat face on a beige background", model, holder, kind)
            buttons = run_buttons(kind)
            controls |= sampling_controls(holder.defaults, kind)
            controls |= more_controls(holder.defaults, kind, controls)
            examples = [[str(PHOTOS / name), text] for name, text in EXAMPLES]
            gr.Examples(
                examples, [controls["image"], controls["prompt"]], label="Try one of these", api_visibility="private"
            )
        with gr.Column(scale=5, min_width=320):
            view = run_view(kind, buttons)
            slider = gr.ImageSlider(
                label="Before and after",
                format="png",
                type="filepath",
                buttons=["fullscreen"],
                interactive=False,
                visible=False,
                elem_id=f"{kind}-slider",
            )
    reuse, start, steps_note = (controls.pop(name) for name in ("_reuse", "_start", "_steps"))
    tab = PhotoTab(kind, controls | {"model": model}, view, history, slider=slider)
    connect(tab, holder, reuse)
    connect_start(tab, holder, start, steps_note)
    return tab


def photo_controls(holder: ModelHolder, kind: str) -> Controls:
    """The photo, how it is fitted, and how much of it is replaced."""
    with gr.Row(elem_classes="photo-row"):
        photo = photo_input(
            label="Photo",
            sources=["upload", "clipboard", "webcam"],
            height=200,
            elem_id=f"{kind}-photo",
            scale=1,
            min_width=150,
        )
        start = gr.HTML(START_HINT, elem_id=f"{kind}-start", scale=1, min_width=150)
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
    fits = [(label, name) for name, label in FIT_LABELS.items()]
    fit = Radio(fits, value="crop", label="Fit the photo", elem_id=f"{kind}-fit")
    return {"image": photo, "strength": strength, "fit": fit, "_steps": steps, "_start": start}


STARTS = ("image", "fit", "strength", "num_inference_steps", "width", "height")
"""The settings that change what a run starts from."""


def connect_start(tab: Tab, holder: ModelHolder, start: gr.HTML, steps_note: gr.Markdown) -> None:
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
            settings = tab.settings(values)
            async for _ in holder.wait(settings["model"]):
                pass
            async with turn:
                return await asyncio.to_thread(start_view, holder, settings)

    gr.on(
        [controls[name].change for name in STARTS],
        draw,
        set(controls.values()),
        start,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_visibility="private",
    )


def start_view(holder: ModelHolder, settings: dict[str, Any]) -> str:
    """The fitted photo, and the noisy picture that a run from it starts with, side by side, as HTML."""
    # The start of a run whose seed is left to chance is shown with one that stays.
    pipeline, request = prepare(holder, {**settings, "num_images": 1})
    request = dataclasses.replace(request, seed=request.seed or 0)
    pictures = (fitted_photo(request), pipeline.start(request))
    captions = ("The photo as it is used", "With noise: the run starts here")
    figures = (
        f'<figure><img src="{live.data_uri(picture)}" alt=""><figcaption>{caption}</figcaption></figure>'
        for picture, caption in zip(pictures, captions, strict=True)
    )
    return f'<div class="start">{"".join(figures)}</div>'
