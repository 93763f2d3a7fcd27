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

from stable_diffusion.request import Defaults, Request
from ui.stage import live

from .form.photo import MaskFile, photo_input, require_photo
from .keep.files import NoRoom
from .keep.history import keep_pictures
from .keep.settings import SETTINGS, Setting
from .runs.backend import Backend
from .runs.errors import errors_as_text
from .runs.events import Event, Started, Waiting
from .runs.message_rate import MessageRate
from .runs.registry import new_run_id
from .runs.visitors import Visitor, visitor_of

BY_MODEL = {"height", "width", *(one.name for one in dataclasses.fields(Defaults))}

Answer = tuple[list[str], dict[str, Any]]


def add_endpoints(backend: Backend, rate: MessageRate) -> None:
    """Add both endpoints to the Blocks that are being built; the page does not show their components."""
    for name, text in (
        ("text2image", "Draw a picture from words."),
        ("image2image", "Draw a new picture over a photo."),
    ):
        inputs = arguments(photo=name == "image2image")
        function = endpoint(backend, rate, list(inputs))
        function.__name__ = name  # the name of the tool for language models
        function.__doc__ = f"{text} Streams every step; the last answer holds the pictures as PNG files."
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


def arguments(*, photo: bool) -> dict[str, Component]:
    """Return the arguments of an endpoint in order, as components that carry type and description."""
    picture: dict[str, Component] = {"image": photo_input(label="image", visible=False)} if photo else {}
    mask: dict[str, Component] = {"mask": photo_input(MaskFile, label="mask", visible=False)} if photo else {}
    return picture | {one.name: argument(one) for one in SETTINGS if photo or not one.for_photos} | mask


def argument(setting: Setting) -> Component:
    """Return the component of one argument; it is empty, and None means the model's own setting."""
    choices = f": {', '.join(setting.choices)}" if setting.choices else ""
    default = "; by default what suits the model" if setting.name in BY_MODEL else ""
    kind = gr.Textbox if setting.kind is str else gr.Number
    return kind(None, label=setting.name + choices + default, visible=False)


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
                        yield [], describe(news, started.dropped)
                else:
                    assert started is not None, "a run starts before it ends"
                    step, stopped_at = describe(news, started.dropped), news.index if news.stopped else None
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


def describe(event: Event, dropped: dict[str, str]) -> dict[str, Any]:
    """Return a step as JSON; `dropped` has the text beyond the model's limit, by field."""
    return {
        "step": event.index,
        "total": event.total,
        "timestep": event.timestep,
        "sigma": None if math.isinf(event.sigma) else event.sigma,
        "seed": event.seed,
        "seconds_per_step": event.seconds_per_step,
        "preview": live.webp_uri(event.x_0),
        "finished": event.images is not None,
        "dropped": dropped,
        "blurred": event.blurred,
    }
