"""The news of a run: that it waits, that it starts, and an event for each step, for the page and for programs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from stable_diffusion.request import Request

from ..keep.infotext import write_infotext
from ..keep.marks import Mark, mark_of
from ..keep.metadata import encoded, save_options

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.guidance import Query
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Step

MAX_PREVIEW = 1024
LOSSLESS = 128
"""Longest side, in pixels, of previews that are encoded without loss: people see their single pixels. At twice the
side noise takes 65 kB without loss, and 7 kB at a quality of 90."""


@dataclass(frozen=True)
class Waiting:
    """The run has no step yet.

    text: the reason of the wait; may be empty. position: its place in the queue, 1 for the next; 0
    outside the queue. seconds: the expected wait, if it is known.
    """

    text: str
    position: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Started:
    """The run is prepared: its model is loaded and its request complete.

    request: complete and seeded, with photo and mask as pictures of its size. dropped: by field, the end of prompt and
    negative prompt that exceeds the model's limit.
    """

    request: Request
    dropped: dict[str, str]


@dataclass(frozen=True)
class Event:
    """One step of a run; the last event carries the final images.

    index: 1 to total. Steps may be left out if many runs share the network, and a preview may belong to an earlier step
    than the last event.
    x_0: WebP file of the network's guess with the prompt, before guidance, several images side by side; None where no
    preview was due. x_t, guided, unguided: the same with a pixel for each latent, of the noisy latents before it, the
    guided guess, and the guess without the prompt; the last two are None in a run without guidance.
    images: the final images as PNG files with their settings, on the last event only.
    stopped: whether the images are partial because the run was stopped.
    blurred: how many final images the model's safety checker found.
    start: on the first event only: step 0, whose two previews show the run's first noise.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    seed: int
    seconds_per_step: float
    x_0: bytes | None
    x_t: bytes | None
    guided: bytes | None = None
    unguided: bytes | None = None
    images: list[bytes] | None = None
    stopped: bool = False
    blurred: int = 0
    start: Event | None = None

    @property
    def seconds_left(self) -> float:
        """Duration of the remaining steps at the pace of those so far."""
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
    """Return the event of a step; decodes and encodes pictures.

    request: the run's, seeded. model: its name. stopped: whether this step ends the run, with the images so far. start:
    the run's first query, for its first event.
    """
    pictured = step.images is not None and request.preview != "none"
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
        x_0=None if shown is None else webp(tile(shown), None if images is None else mark_of(request)),
        x_t=webp(tile(step.noisy())) if pictured else None,
        guided=layer(step, step.answer.x_0) if pictured else None,
        unguided=layer(step, step.answer.unconditional) if pictured else None,
        images=None if images is None else files_of(images, request, model, stopped_at, step.precision),
        stopped=stopped,
        blurred=0 if images is None else sum(step.found),
        start=None if start is None or request.preview == "none" else noise_of(step, start),
    )


def layer(step: Step, x_0: Tensor | None) -> bytes | None:
    """Return a WebP file of another x_0 of a step, a pixel for each latent; None in a run without guidance."""
    return None if x_0 is None or step.answer.unconditional is None else webp(tile(step.coarse(x_0)))


def noise_of(step: Step, start: Query) -> Event:
    """Return the noise that a run started from as its step 0; `step` is one of its steps."""
    begun = replace(step, index=0, level=start.level, latents=start.x)
    picture = webp(tile(begun.noisy()))
    return Event(0, step.total, begun.timestep, begun.level.noise_to_signal, step.seed, 0.0, picture, picture)


def dropped_text(pipeline: Pipeline, request: Request) -> dict[str, str]:
    """Return, by field, the end of prompt and negative prompt that exceeds the model's limit."""
    from stable_diffusion.prompt import tokenize_request

    tokens = tokenize_request(pipeline.models.tokenizer, request)
    return {name: read.dropped for name, read in tokens.items() if read.dropped}


def tile(images: list[Image.Image]) -> Image.Image:
    """Return pictures of one size as one picture, two in a row."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    rows = math.ceil(len(images) / 2)
    sheet = Image.new("RGB", (2 * width, rows * height), "white")
    for position, image in enumerate(images):
        sheet.paste(image, (position % 2 * width, position // 2 * height))
    return sheet


def webp(image: Image.Image, mark: Mark | None = None) -> bytes:
    """Encode a preview fast, as WebP of at most 1,024 pixels a side; one that a visitor may keep gets its mark."""
    if max(image.size) > MAX_PREVIEW:
        image = image.copy()
        image.thumbnail((MAX_PREVIEW, MAX_PREVIEW))
    buffer = io.BytesIO()
    options = {} if mark is None else save_options("WEBP", "", mark)
    image.save(buffer, "WEBP", quality=90, method=0, lossless=max(image.size) <= LOSSLESS, **options)
    return buffer.getvalue()


def files_of(
    images: Sequence[Image.Image], request: Request, model: str, stopped_at: tuple[int, int] | None, precision: str
) -> list[bytes]:
    """Return a seeded request's images as PNG files with their settings and their mark; image i has seed + i."""
    assert request.seed is not None
    mark = mark_of(request)
    return [
        encoded(image, write_infotext(request, seed, model, stopped_at, precision), mark=mark)
        for seed, image in enumerate(images, request.seed)
    ]
