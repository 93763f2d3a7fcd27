"""The same runs for programs: `/text2image` and `/image2image`, for gradio_client and for anything that speaks HTTP.

Both stream: every step answers with no pictures and a JSON object about the step, its `preview` a data URI; the last
answer holds the pictures as PNG files, with their settings inside.
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

from .form.photo import MaskFile, photo_input, photo_path
from .form.settings import SETTINGS, Setting
from .keep.files import NoRoom
from .keep.history import keep_run
from .runs.backend import Backend
from .runs.errors import told_to_programs
from .runs.events import Event, Started, Waiting
from .runs.limits import check
from .stage.live import new_run

BY_MODEL = {"height", "width", *(one.name for one in dataclasses.fields(Defaults))}

Answer = tuple[list[str], dict[str, Any]]


def add_endpoints(backend: Backend) -> None:
    """Add both endpoints to the Blocks that are being built. Their components are never drawn."""
    for name, text in (
        ("text2image", "Draw a picture from words."),
        ("image2image", "Draw a new picture over a photo."),
    ):
        inputs = arguments(photo=name == "image2image")
        function = endpoint(backend, list(inputs))
        function.__name__ = name  # by which language models call it
        function.__doc__ = f"{text} Streams every step; the last answer holds the pictures as PNG files."
        gr.Button(visible=False).click(
            function,
            list(inputs.values()),
            outputs=[gr.Gallery(label="images", format="png", visible=False), gr.JSON(label="step", visible=False)],
            api_name=name,
            concurrency_limit=None,
        )


def endpoint(backend: Backend, names: list[str]) -> Callable[..., AsyncIterator[Answer]]:
    """A function with arguments of these names: image and prompt have to be given, all others are None by default."""

    async def function(*arguments: Any) -> AsyncIterator[Answer]:
        *values, visitor = arguments
        with told_to_programs():
            given = dict(zip(names, values, strict=True))
            if "image" in given:
                photo_path(given["image"])
            async with aclosing(answers(backend, given, visitor.session_hash)) as stream:
                async for answer in stream:
                    yield answer

    required, kind = ("image", "prompt"), inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, default=inspect.Parameter.empty if name in required else None)
        for name in [*names, "visitor"]
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {"visitor": gr.Request}  # by which Gradio knows that it is not an argument
    return function


def arguments(*, photo: bool) -> dict[str, Component]:
    """The arguments of an endpoint, in order, as components that carry type and description."""
    picture: dict[str, Component] = {"image": photo_input(label="image", visible=False)} if photo else {}
    mask: dict[str, Component] = {"mask": photo_input(MaskFile, label="mask", visible=False)} if photo else {}
    return picture | {one.name: argument(one) for one in SETTINGS if photo or not one.for_photos} | mask


def argument(setting: Setting) -> Component:
    """The component of one argument. It is empty: what a program leaves out is for the model to decide."""
    choices = f": {', '.join(setting.choices)}" if setting.choices else ""
    default = "; by default what suits the model" if setting.name in BY_MODEL else ""
    kind = gr.Textbox if setting.kind is str else gr.Number
    return kind(None, label=setting.name + choices + default, visible=False)


async def answers(backend: Backend, given: dict[str, Any], owner: str | None) -> AsyncGenerator[Answer]:
    """Run a request and answer with every step; ValueError, naming the argument, where it can't be run."""
    run_id = new_run()
    check(given)
    async with aclosing(backend.stream(run_id, given, owner or run_id)) as stream:
        async for news in stream:
            if isinstance(news, Waiting):
                yield [], waiting(news)
            elif isinstance(news, Started):
                started = news
            else:
                told = describe(news, started.dropped)
                try:
                    kept = await asyncio.to_thread(files, started.request, news)
                except NoRoom:
                    yield [], told  # the last preview is the picture
                    raise
                yield kept, told


def files(request: Request, event: Event) -> list[str]:
    """The paths of a run's pictures; none before its last step."""
    return [] if event.images is None else list(keep_run("api", request, event, []).files)


def waiting(news: Waiting) -> dict[str, Any]:
    """That there is no step yet, as JSON with the names of a step; `waiting` says what for."""
    nothing = {"total": None, "timestep": None, "sigma": None, "seed": None, "preview": None, "finished": False}
    return {"step": 0, **nothing, "waiting": news.text, "position": news.position, "seconds": news.seconds}


def describe(event: Event, dropped: dict[str, str]) -> dict[str, Any]:
    """A step as JSON; `dropped` names the text that was too long for the model."""
    return {
        "step": event.index,
        "total": event.total,
        "timestep": event.timestep,
        "sigma": None if math.isinf(event.sigma) else event.sigma,
        "seed": event.seed,
        "seconds_per_step": event.seconds_per_step,
        "preview": live.as_uri(event.x_0),
        "finished": event.images is not None,
        "dropped": dropped,
        "blurred": event.blurred,
    }
