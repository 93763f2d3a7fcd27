"""The endpoints for programs: `/text2image` and `/image2image`, for gradio_client and any other HTTP client.

Both stream: each step answers with no pictures and a JSON object, whose `preview` is a data URI; the last answer has
the pictures as PNG files with their settings.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr
from gradio.components import Component

from stable_diffusion.request import (
    MAX_CLIP_SKIP,
    MAX_MASK_BLUR,
    MAX_STEPS,
    SIZE_UNIT,
    Defaults,
    Request,
    RequestError,
)
from ui.stage import live

from .form.photo import MaskFile, PhotoInput, photo_input, require_photo
from .keep.files import NoRoom
from .keep.history import keep_pictures
from .keep.settings import SETTINGS, Setting
from .runs.backend import Backend
from .runs.errors import errors_as_text
from .runs.events import Event, Started, Waiting
from .runs.message_rate import MessageRate
from .runs.models import LoadedModels
from .runs.registry import new_run_id
from .runs.visitors import Visitor, visitor_of

BY_MODEL = {"height", "width", "then_at", *(one.name for one in dataclasses.fields(Defaults))} - {"fast"}

AS_FILE = "a data URI, or the address or path of a file that was uploaded to this server"
ABOUT = {
    "image": f"the photo: {AS_FILE}",
    "mask": f"a picture laid over the photo, white where it is drawn anew, black where it stays: {AS_FILE}",
    "prompt": "the picture in words, not empty",
    "strength": "the share of the steps that is run: low stays close to the photo",
    "fit": "how the photo is brought to width x height",
    "negative_prompt": "what to keep out of the picture",
    "num_inference_steps": "number of steps: more are slower and often finer",
    "guidance_scale": "how closely to follow the prompt",
    "height": "in pixels, a multiple of 8, with some models of 16",
    "width": "in pixels, a multiple of 8, with some models of 16",
    "sampler": "the algorithm that removes the noise",
    "schedule": "the spacing of the noise levels",
    "clip_skip": "number of the text encoder's last layers to leave out",
    "seed": "the same seed and settings give the same picture; by default a random one, as for -1",
    "num_images": "number of pictures, with one seed after the other",
    "preview": "the decoder of the pictures of single steps",
    "preview_every": "n for a picture of every n-th step",
    "prompt_syntax": "plain, the default; read, for what the included model knows of it, in a style that `seed` "
    "chooses for all pictures if it names none; or weighted, as in (more:1.3)",
    "model": "the model that draws; by default the first",
    "mask_blur": "pixels around the mask's white over which the picture fades into the photo",
    "then": "other words, which take the prompt's place from step `then_at` on",
    "then_at": "the first step that hears `then`, counted from 1; by default after half of the steps",
    "fast": "four evaluations, with weights that were trained for it, where the model has them; no negative prompt",
}
"""A description of each argument."""
BOUNDS: dict[str, dict[str, float]] = {
    "strength": {"exclusiveMinimum": 0, "maximum": 1},
    "num_inference_steps": {"minimum": 1},
    "guidance_scale": {"minimum": 0},
    "height": {"minimum": SIZE_UNIT, "multipleOf": SIZE_UNIT},
    "width": {"minimum": SIZE_UNIT, "multipleOf": SIZE_UNIT},
    "clip_skip": {"minimum": 0, "maximum": MAX_CLIP_SKIP},
    "mask_blur": {"minimum": 0, "maximum": MAX_MASK_BLUR},
    "then_at": {"minimum": 1, "maximum": MAX_STEPS},
    "seed": {"minimum": -1},
    "num_images": {"minimum": 1},
    "preview_every": {"minimum": 1, "maximum": MAX_STEPS},
}
"""Bounds in the words of JSON Schema, apart from the largest values, which the deployer sets."""
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}

Answer = tuple[list[str], dict[str, Any]]


class Text(gr.Textbox):
    """An argument that is text, with a schema of its own for `Use via API` and for language models."""

    is_template = True
    schema: dict[str, Any]

    def api_info(self) -> dict[str, Any]:
        """Return the JSON schema of the argument."""
        return self.schema


class Number(gr.Number):
    """The same for a number."""

    is_template = True
    schema: dict[str, Any]

    def api_info(self) -> dict[str, Any]:
        """Return the JSON schema of the argument."""
        return self.schema


class Flag(gr.Checkbox):
    """The same for a switch."""

    is_template = True
    schema: dict[str, Any]

    def api_info(self) -> dict[str, Any]:
        """Return the JSON schema of the argument."""
        return self.schema


COMPONENTS: dict[type, type[Text | Number | Flag]] = {str: Text, int: Number, float: Number, bool: Flag}


def add_endpoints(backend: Backend, models: LoadedModels, rate: MessageRate) -> None:
    """Add both endpoints to the Blocks that are being built; the page does not show their components."""
    for name, text in (
        ("text2image", "Draw a picture from words."),
        ("image2image", "Draw a new picture over a photo."),
    ):
        inputs = arguments(models, photo=name == "image2image")
        function = endpoint(backend, rate, list(inputs))
        function.__name__ = name  # the name of the tool for language models
        lines = (component.label for component in inputs.values())
        answer = "Streams every step; the last answer holds the pictures as PNG files."
        function.__doc__ = "\n".join([f"{text} {answer}", "", "Args:", *map(str, lines)])
        gr.Button(visible=False).click(
            function,
            list(inputs.values()),
            outputs=[gr.Gallery(label="images", format="png", visible=False), gr.JSON(label="step", visible=False)],
            api_name=name,
            concurrency_limit=None,
        )


def endpoint(backend: Backend, rate: MessageRate, names: list[str]) -> Callable[..., AsyncIterator[Answer]]:
    """Return a function with arguments of these names: image and prompt are required, the others default to None."""

    async def function(*arguments: Any) -> AsyncIterator[Answer]:
        *values, visitor = arguments
        with errors_as_text():
            given = dict(zip(names, values, strict=True))
            if "image" in given:
                require_photo(given["image"])
            if not str(given["prompt"] or "").strip():
                raise RequestError("prompt must not be empty: describe the picture, for instance as 'a red apple'")
            request = Request(**{name: value for name, value in given.items() if value is not None})
            async with aclosing(answers(backend, rate, request, visitor_of(visitor))) as stream:
                async for answer in stream:
                    yield answer

    required, kind = ("image", "prompt"), inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, default=inspect.Parameter.empty if name in required else None)
        for name in [*names, "visitor"]
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {"visitor": gr.Request}  # Gradio fills arguments of this type itself
    return function


def arguments(models: LoadedModels, *, photo: bool) -> dict[str, Component]:
    """Return the arguments of an endpoint in order, as components that carry type, description, choices and bounds."""
    settings = {one.name: argument(one, models) for one in SETTINGS if photo or not one.for_photos}
    if not photo:
        return settings
    image, mask = (
        photo_input(kind, label=f"{kind.argument}: {ABOUT[kind.argument]}", visible=False)
        for kind in (PhotoInput, MaskFile)
    )
    return {"image": image, **settings, "mask": mask}


def argument(setting: Setting, models: LoadedModels) -> Component:
    """Return the component of one argument; it is empty, and None means the model's own setting."""
    schema: dict[str, Any] = {"type": TYPES[setting.kind], **BOUNDS.get(setting.name, {})}
    choices = list(models.catalogue.sources if setting.name == "model" else setting.choices or ())
    if choices:
        schema["enum"] = choices
    if setting.most is not None:
        schema["maximum"] = getattr(models.limits, setting.most) if isinstance(setting.most, str) else setting.most
    label = f"{setting.name}: {ABOUT[setting.name]}"
    label += f"; one of {', '.join(choices)}" if choices else ""
    label += "; by default what suits the model" if setting.name in BY_MODEL else ""
    component = COMPONENTS[setting.kind](label=label, visible=False)
    component.schema = schema
    return component


async def answers(backend: Backend, rate: MessageRate, request: Request, owner: Visitor) -> AsyncGenerator[Answer]:
    """Run a request and yield an answer for each step, or the newest ones in a crowd.

    Raises `RequestError`, naming the argument, if the request can't be served.
    """
    run_id, started = new_run_id(), None
    stream = backend.stream(run_id, request, owner)
    with rate.stream() as due:
        async with aclosing(stream):
            async for news in stream:
                if isinstance(news, Waiting):
                    yield [], waiting(news)
                elif isinstance(news, Started):
                    started = news
                elif news.images is None:
                    assert started is not None, "a run starts before it has steps"
                    if due():
                        yield [], describe(news, started)
                else:
                    assert started is not None, "a run starts before it ends"
                    step, stopped_at = describe(news, started), news.index if news.stopped else None
                    try:
                        files = await asyncio.to_thread(keep_pictures, started.request, news.images, stopped_at)
                    except NoRoom:
                        yield [], step  # its preview is the picture
                        raise
                    yield files, step


def waiting(news: Waiting) -> dict[str, Any]:
    """Return the news of a run without a step yet, as JSON with the names of a step."""
    nothing = {"total": None, "timestep": None, "sigma": None, "seed": None, "preview": None, "finished": False}
    return {"step": 0, **nothing, "waiting": news.text, "position": news.position, "seconds": news.seconds}


def describe(event: Event, started: Started) -> dict[str, Any]:
    """Return a step as JSON, with the prompt that is drawn and, by field, the text beyond the model's limit."""
    return {
        "step": event.index,
        "total": event.total,
        "timestep": event.timestep,
        "sigma": None if math.isinf(event.sigma) else event.sigma,
        "seed": event.seed,
        "seconds_per_step": event.seconds_per_step,
        "preview": live.webp_uri(event.x_0),
        "finished": event.images is not None,
        "prompt": started.request.prompt,
        "dropped": started.dropped,
        "blurred": event.blurred,
    }
