"""What a run tells: that it waits, that it begins, and every step as an event that the page draws and programs read."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from stable_diffusion.request import Request

from ..keep.infotext import write_infotext
from ..keep.metadata import KEY, encoded

if TYPE_CHECKING:
    from stable_diffusion.guidance import Query
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Step

MAX_PREVIEW = 1024
LOSSLESS = 128
"""Previews of at most this side lose nothing on their way: there a pixel is a dot that people see. At twice the side
noise takes 65 kB without loss, and 7 at a quality of 90."""


@dataclass(frozen=True)
class Waiting:
    """No step yet. `text` says what for, and is empty where it is not worth a word.

    position is the place in the line, 1 for the next; 0 where there is no line. seconds is how long that will take, as
    far as can be said.
    """

    text: str
    position: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Started:
    """The run is known to be possible: its request, with the model's defaults and a seed.

    dropped is the end of prompt and negative prompt that the model can't read, where they are too long.
    """

    request: Request
    dropped: dict[str, str]


@dataclass(frozen=True)
class Event:
    """One step of a run; the last event carries the pictures to keep.

    index counts 1 to total. Where many share the network, steps may be left out, and a picture may be that of a step
    before the last one told. x_0 and x_t are WebP files of the network's guess and of the noisy latents it saw, those
    of several images side by side; None where no preview was due. images are the pictures to keep, as PNG files with
    their settings inside, on the last event only; stopped says that they are partial.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    seed: int
    seconds_per_step: float
    x_0: bytes | None
    x_t: bytes | None
    images: list[bytes] | None = None
    stopped: bool = False
    blurred: int = 0
    """How many of the pictures to keep the model's safety checker found."""
    start: Event | None = None
    """On the first event alone: what the run began with, as step 0, whose two pictures are its noise."""

    @property
    def seconds_left(self) -> float:
        """How long the remaining steps will take, if they go on like those so far."""
        return self.seconds_per_step * (self.total - self.index)


News = Waiting | Started | Event


def event_of(
    step: Step,
    request: Request,
    model: str,
    seconds_per_step: float,
    *,
    stopped: bool = False,
    start: Query | None = None,
) -> Event:
    """What happened at a step of a seeded request; where it is `stopped` by it, with the picture that there is so far.

    start is the run's first question, for its first event.

    Decodes, and encodes: not for the thread of the event loop.
    """
    previewed = step.images is not None
    if stopped:
        step = step.decoded()
    shown = step.images
    images = shown if stopped or step.result is not None else None
    stopped_at = (step.index, step.total) if stopped else None
    return Event(
        index=step.index,
        total=step.total,
        timestep=step.timestep,
        sigma=step.level.noise_to_signal,
        seed=step.seed,
        seconds_per_step=seconds_per_step,
        x_0=None if shown is None else webp(tile(shown)),
        x_t=None if not previewed or request.preview == "none" else webp(tile(step.noisy())),
        images=None
        if images is None
        else [encoded(image) for image in signed(images, request, model, stopped_at, step.precision)],
        stopped=stopped,
        blurred=0 if images is None else sum(step.found),
        start=None if start is None or request.preview == "none" else noise_of(step, start),
    )


def noise_of(step: Step, start: Query) -> Event:
    """The noise that a step's run started from, as its step 0."""
    begun = replace(step, index=0, level=start.level, latents=start.x)
    picture = webp(tile(begun.noisy()))
    return Event(0, step.total, begun.timestep, begun.level.noise_to_signal, step.seed, 0.0, picture, picture)


def fitted_photo(request: Request) -> Image.Image:
    """The request's photo as the run will use it: upright, in RGB, of the request's size."""
    from stable_diffusion.images import fit_image, read_image

    assert request.image is not None
    assert request.width is not None
    assert request.height is not None
    return fit_image(read_image(request.image), request.width, request.height, request.fit)


def dropped_text(pipeline: Pipeline, request: Request) -> dict[str, str]:
    """The end of prompt and negative prompt that the model can't read, where they are too long."""
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    dropped = {name: pipeline.tokenize(text, request.prompt_syntax).dropped for name, text in texts.items()}
    return {name: text for name, text in dropped.items() if text}


def tile(images: list[Image.Image]) -> Image.Image:
    """Pictures of one size as one picture: one, two side by side, or two rows."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    rows = math.ceil(len(images) / 2)
    sheet = Image.new("RGB", (2 * width, rows * height), "white")
    for position, image in enumerate(images):
        sheet.paste(image, (position % 2 * width, position // 2 * height))
    return sheet


def webp(image: Image.Image) -> bytes:
    """A preview as a small file, encoded for speed; reduced where it is larger than a screen needs."""
    if max(image.size) > MAX_PREVIEW:
        image = image.copy()
        image.thumbnail((MAX_PREVIEW, MAX_PREVIEW))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=0, lossless=max(image.size) <= LOSSLESS)
    return buffer.getvalue()


def signed(
    images: Sequence[Image.Image], request: Request, model: str, stopped_at: tuple[int, int] | None, precision: str
) -> list[Image.Image]:
    """Copies of a seeded request's pictures with their settings inside; picture i has seed + i."""
    assert request.seed is not None
    copies = [image.copy() for image in images]
    for seed, copy in enumerate(copies, request.seed):
        copy.info[KEY] = write_infotext(request, seed, model, stopped_at, precision)
    return copies
