"""The same runs for programs: `/text2image` and `/image2image`, for gradio_client and for anything that speaks HTTP.

Both stream: every step answers with no pictures and a JSON object about the step, its `preview` a data URI; the last
answer holds the pictures as PNG files, with their settings inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components import Component

from ui import live

from .history import keep_run
from .models import ModelHolder
from .options import FITS, PREVIEWS, SAMPLERS, Defaults
from .photo import photo_input
from .request import Request, photo_path
from .run import Event, dropped_text, run
from .tab import QUEUE

Answer = tuple[list[str], dict[str, Any]]


def add_endpoints(holder: ModelHolder) -> None:
    """Add both endpoints to the Blocks that are being built. Their components are never drawn."""

    # Only arguments whose default is None are spelled out: Gradio reads the others' from the components.
    def text2image(
        prompt: str,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        model: str | None = None,
        **others: Any,
    ) -> Iterator[Answer]:
        """Draw a picture from words. Streams every step; the last answer holds the pictures as PNG files."""
        yield from answers(holder, Request(prompt, height=height, width=width, seed=seed, model=model, **others))

    def image2image(
        image: str,
        prompt: str,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        model: str | None = None,
        **others: Any,
    ) -> Iterator[Answer]:
        """Draw a new picture over a photo. Streams every step; the last answer holds the pictures as PNG files."""
        sizes = {"height": height, "width": width}
        yield from answers(holder, Request(prompt, photo=photo_path(image), seed=seed, model=model, **sizes, **others))

    for function in (text2image, image2image):
        gr.Button(visible=False).click(
            plain_errors(function),
            inputs_kwargs=arguments(holder.defaults, photo=function is image2image),
            outputs=[gr.Gallery(label="images", format="png", visible=False), gr.JSON(label="step", visible=False)],
            api_name=function.__name__,
            concurrency_id=QUEUE,
            concurrency_limit=1,
        )


def plain_errors(function: Callable[..., Iterator[Answer]]) -> Callable[..., Iterator[Answer]]:
    """The function, whose ValueErrors reach the program as they are: Gradio hides all errors but its own."""

    @functools.wraps(function)
    def wrapper(*values: Any, **named: Any) -> Iterator[Answer]:
        try:
            yield from function(*values, **named)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapper


def arguments(defaults: Defaults, *, photo: bool) -> dict[str, Component]:
    """The arguments of an endpoint, in order, as components that carry type and default."""

    def number(name: str, value: float | None = None) -> gr.Number:
        return gr.Number(value, label=name, visible=False)

    def choice(name: str, choices: dict[str, str], value: str) -> gr.Textbox:
        return gr.Textbox(value, label=f"{name}: {', '.join(choices)}", visible=False)

    picture = {"image": photo_input(label="image", visible=False)} if photo else {}
    picture_settings = {
        "strength": number("strength", defaults.strength),
        "fit": choice("fit", FITS, "crop"),
    }
    return {
        **picture,
        "prompt": gr.Textbox(label="prompt", visible=False),
        **(picture_settings if photo else {}),
        "negative_prompt": gr.Textbox("", label="negative_prompt", visible=False),
        "num_inference_steps": number("num_inference_steps", defaults.num_inference_steps),
        "guidance_scale": number("guidance_scale", defaults.guidance_scale),
        "height": number("height"),
        "width": number("width"),
        "sampler": choice("sampler", SAMPLERS, defaults.sampler),
        "seed": number("seed"),
        "num_images": number("num_images", 1),
        "preview": choice("preview", PREVIEWS, defaults.preview),
        "preview_every": number("preview_every", 1),
        "model": gr.Textbox(None, label="model", visible=False),
    }


def answers(holder: ModelHolder, request: Request) -> Iterator[Answer]:
    """Run a request and answer with every step; ValueError, naming the argument, where it can't be run."""
    pipeline = holder.pipeline(request.model)
    request = request.for_side(pipeline.default_size)
    dropped = dropped_text(pipeline, request)
    for event in run(pipeline, request):
        yield files(request, event), describe(event, dropped)


def files(request: Request, event: Event) -> list[str]:
    """The paths of a run's pictures; none before its last step."""
    return [] if event.images is None else list(keep_run("api", request, event, []).files)


def describe(event: Event, dropped: dict[str, str]) -> dict[str, Any]:
    """A step as JSON; `dropped` names the text that was too long for the model."""
    return {
        "step": event.index,
        "total": event.total,
        "timestep": event.timestep,
        "sigma": None if math.isinf(event.sigma) else event.sigma,
        "seed": event.seed,
        "seconds_per_step": event.seconds_per_step,
        "preview": live.data_uri(event.x_0),
        "finished": event.images is not None,
        "dropped": dropped,
    }
