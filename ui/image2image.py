"""The tab Image2Image: a new picture over a photo."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import gradio as gr
from PIL import Image

from stable_diffusion.request import FIT_LABELS, MAX_MASK_BLUR, Defaults, Request, steps_for_strength
from ui.stage import live

from .form.controls import CHECKED, QUIET, Controls, Values, connect_fast, keep_fast, more_controls, sampling_controls
from .form.inputs import Radio, Slider, picked
from .form.mask import backdrop, mask_painter
from .form.photo import photo_input, require_photo
from .form.prompt import prompt_controls
from .keep.history import History
from .keep.link import PHOTOS
from .runs.errors import errors_on_page
from .runs.events import Waiting
from .runs.visitors import visitor_of
from .stage.opening import PHOTO_EXAMPLES, SEED, STRENGTH, STRENGTHS, cards, strength_card
from .tab import PRESS, Services, Tab, connect, run_view

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

START_HINT = "<p class='hint'>Here you will see what the run starts from: the photo, with noise.</p>"
MASK_NOTE = "Paint over it on the stage: it is drawn anew, the rest stays"


class PhotoTab(Tab):
    """A tab whose requests need a photo."""

    def request(self, values: Values) -> Request:
        """Return the request of the form; `RequestError` for a missing photo, or a value that no model takes."""
        require_photo(values[self.controls["image"]])
        return super().request(values)


def image2image(services: Services, history: History, model: gr.Dropdown, opened: gr.Tab) -> Tab:
    """Build the tab and connect it; `opened` is the page's tab that it is placed in."""
    kind, models = "i2i", services.models
    defaults = models.defaults()
    gr.set_static_paths([PHOTOS])  # the examples keep their paths, by which a link names them
    with gr.Row(equal_height=False, elem_classes="areas"):
        with gr.Column(elem_classes="ask"):
            controls = photo_controls(kind)
            controls |= prompt_controls("What it should become: a cat face on a beige background", model, models, kind)
        with gr.Column(elem_classes="view"):
            edge = mask_controls(kind) | strength_controls(kind)
            view = run_view(kind, controls.pop("_run"), list(edge.values()))
        with gr.Column(elem_classes="settings"):
            controls |= start_controls(kind)
            controls |= sampling_controls(defaults, kind)
            controls |= more_controls(defaults, kind, controls, model, models)
    controls |= {name: edge[name] for name in ("mask", "mask_blur", "strength")}
    connect_fast(controls, model, models)
    for changed in (controls["strength"].input, controls["image"].input):
        keep_fast(changed, controls, model, models)
    reuse, fill, sketch, start, photos, part = (
        controls.pop(name) for name in ("_reuse", "_fill", "_sketch", "_start", "_photos", "_part")
    )
    photo, prompt = controls["image"], controls["prompt"]
    prompt.value = PHOTO_EXAMPLES[0][1]
    tab = PhotoTab(kind, controls | {"model": model}, view, history, sketch, fill)
    connect_mask(controls, part)
    connect(tab, services, reuse)
    connect_start(tab, services, opened, start)
    connect_steps(controls, part, defaults, edge["_steps"])

    def pick(event: gr.SelectData) -> tuple[str, str, float, str]:
        name, text = picked(event, PHOTO_EXAMPLES)
        return str(PHOTOS / name), text, STRENGTH, str(SEED)

    def pick_strength(event: gr.SelectData) -> tuple[float, str]:
        return picked(event, STRENGTHS), str(SEED)

    def show_strip(photo: str | None, text: str) -> gr.Gallery:
        name, first = PHOTO_EXAMPLES[0]
        return gr.Gallery(visible=(photo, text) == (str(PHOTOS / name), first))

    gr.on([photo.change, prompt.change], show_strip, [photo, prompt], edge["_strip"], **QUIET)
    for pressed in (
        photos.select(pick, None, [photo, prompt, controls["strength"], controls["seed"]], **CHECKED),
        edge["_strip"].select(pick_strength, None, [controls["strength"], controls["seed"]], **CHECKED),
    ):
        suited = keep_fast(pressed.success, controls, model, models)
        suited.success(None, js=PRESS % kind, api_visibility="private")
    return tab


def photo_controls(kind: str) -> Controls:
    """Return the photo, example photos, and the switch of the mask."""
    photo = photo_input(
        value=str(PHOTOS / PHOTO_EXAMPLES[0][0]),
        label="Photo",
        sources=["upload", "clipboard", "webcam"],
        height=200,
        elem_id=f"{kind}-photo",
    )
    photos = cards([(PHOTOS / name, text) for name, text in PHOTO_EXAMPLES], "Or one of these", f"{kind}-photos")
    part = gr.Checkbox(False, label="Change only a part", info=MASK_NOTE, elem_id=f"{kind}-part")
    return {"image": photo, "_photos": photos, "_part": part}


def mask_controls(kind: str) -> Controls:
    """Return the painter of the mask and its blur, to place at the stage."""
    blur = Slider(
        0,
        MAX_MASK_BLUR,
        value=Request.mask_blur,
        step=1,
        label="Mask blur",
        info="Pixels around the paint over which the picture fades into the photo",
        elem_id=f"{kind}-mask-blur",
        visible=False,
        render=False,
    )
    return {"mask": mask_painter(f"{kind}-mask"), "mask_blur": blur}


def connect_mask(controls: Controls, part: gr.Checkbox) -> None:
    """Show the painter while a part is to be changed, with the photo as the run uses it."""
    names = ("image", "fit", "width", "height")
    changes = [part.change, *(controls[name].change for name in names)]
    gr.on(changes, backdrop, [part, *(controls[name] for name in names)], controls["mask"], **QUIET)
    part.change(lambda on: Slider(visible=on), part, controls["mask_blur"], **QUIET)


def strength_controls(kind: str) -> Controls:
    """Return strength, a note on its steps, and the first photo's picture at every strength, to place at the stage."""
    strength = Slider(
        0.05,
        1,
        value=STRENGTH,
        step=0.05,
        label="Strength",
        info="Low: stay close to the photo. High: follow the prompt",
        elem_id=f"{kind}-strength",
        render=False,
    )
    steps = gr.Markdown(elem_id=f"{kind}-runs", elem_classes="note", render=False)
    pictures = [(strength_card(one), str(one)) for one in STRENGTHS]
    strip = cards(pictures, "The same photo at every strength", f"{kind}-strengths", render=False)
    return {"strength": strength, "_steps": steps, "_strip": strip}


def start_controls(kind: str) -> Controls:
    """Return the fit of the photo, and a view of the run's start."""
    start = gr.HTML(START_HINT, elem_id=f"{kind}-start")
    fits = [(label, name) for name, label in FIT_LABELS.items()]
    fit = Radio(fits, value="crop", label="Fit the photo", elem_id=f"{kind}-fit")
    return {"fit": fit, "_start": start}


def connect_steps(controls: Controls, part: gr.Checkbox, defaults: Defaults, note: gr.Markdown) -> None:
    """Show how many of the steps a run takes at the chosen strength."""

    def describe(strength: float, steps: int, part: bool) -> str:
        runs = f"Runs **{steps_for_strength(steps, strength)} of {steps} steps**"
        if strength == 1:
            return f"{runs}. At 1 nothing of the photo is left to see{' under the paint' if part else ''}."
        return f"{runs}, starting from the photo with noise."

    inputs = [controls["strength"], controls["num_inference_steps"], part]
    gr.on([component.change for component in inputs], describe, inputs, note, **QUIET)
    note.value = describe(STRENGTH, defaults.num_inference_steps, False)


STARTS = (
    *("image", "fit", "strength", "num_inference_steps", "width", "height"),
    *("sampler", "schedule", "seed", "model"),
)
"""The settings that change the start of a run."""


def connect_start(tab: Tab, services: Services, opened: gr.Tab, start: gr.HTML) -> None:
    """Show the start of a run as the controls change."""
    controls = tab.controls

    async def draw(values: Values, visitor: gr.Request) -> AsyncIterator[str]:
        if values[controls["image"]] is None:
            yield START_HINT
            return
        yield gr.skip()  # an event that yields nothing would empty the view
        with errors_on_page():
            request = start_request(tab.request({**values, controls["mask"]: None}))
            async with aclosing(services.backend.inspect(start_view, [request], visitor_of(visitor))) as shown:
                async for value in shown:
                    if not isinstance(value, Waiting):
                        yield value

    gr.on(
        [opened.select, *(controls[name].change for name in STARTS)],
        draw,
        {one for name, one in controls.items() if name != "mask"},  # the browser sends it again with every event
        start,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_visibility="private",
    )


def start_request(request: Request) -> Request:
    """Return the request whose first step shows the start of a run.

    A random seed is shown as one that stays. Without words, the first x_0 shows the photo and not the prompt.
    """
    words = {"prompt": "", "then": "", "negative_prompt": "", "guidance_scale": 1.0}
    return request.with_values(**words, seed=request.seed or 0, num_images=1, preview="none")


def start_view(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[str], None]) -> Inquiry[None]:
    """Show the fitted photo, the noisy picture that a run starts from, and the network's x_0 of it, as HTML."""
    from stable_diffusion.inspection import decoded, next_step

    [request] = requests
    run = pipeline.begin(request)
    step = yield from next_step(run, run.preview())
    if step.images is None:
        step = yield from decoded(step)
    assert step.images is not None
    assert isinstance(request.image, Image.Image)
    pictures = (request.image, step.noisy()[0], step.images[0])
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
    show(f'<div class="start">{"".join(figures)}</div>')
