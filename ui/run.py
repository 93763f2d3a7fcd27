"""A request, run: every step becomes an event that the page draws and that programs receive."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from stable_diffusion.request import Request

from .infotext import write_infotext
from .metadata import KEY

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One step of a run; the last event carries the pictures to keep.

    index counts 1 to total. x_0 and x_t are pictures of the network's guess and of the noisy latents it saw, those of
    several images side by side; None where no preview was due. images are the pictures to keep, with their settings
    inside, on the last event only; stopped says that they are partial.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    seed: int
    seconds_per_step: float
    x_0: Image.Image | None
    x_t: Image.Image | None
    images: list[Image.Image] | None = None
    stopped: bool = False

    @property
    def seconds_left(self) -> float:
        """How long the remaining steps will take, if they go on like those so far."""
        return self.seconds_per_step * (self.total - self.index)


def run(pipeline: Pipeline, request: Request, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Run a request. ValueError, before the first event, where it can't be.

    When `stopped` turns true the run ends at its next step and keeps the picture it has. Closing the generator ends it
    without one.
    """
    request = request.seeded()
    steps = pipeline.stream(request)
    event, started = None, time.perf_counter()
    try:
        for step in steps:
            over = step.result is None and stopped()
            event = _event(pipeline, request, step, (time.perf_counter() - started) / step.index, over)
            yield event
            if over:
                break
    finally:
        steps.close()
        done = event is not None and event.images is not None and not event.stopped
        at = f"{event.index} of {event.total}" if event else "0"
        log.info("%s at step %s", "finished" if done else "stopped", at)


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
    dropped = {name: pipeline.read_prompt(text, request.prompt_syntax).dropped for name, text in texts.items()}
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


def _event(pipeline: Pipeline, request: Request, step: Step, seconds_per_step: float, stopped: bool) -> Event:
    """What happened at a step; where the run is `stopped` by it, with the picture that there is so far."""
    shown = step.decoded() if stopped else step.images
    images = shown if stopped or step.result is not None else None
    stopped_at = (step.index, step.total) if stopped else None
    return Event(
        index=step.index,
        total=step.total,
        timestep=step.timestep,
        sigma=step.level.noise_to_signal,
        seed=step.seed,
        seconds_per_step=seconds_per_step,
        x_0=None if shown is None else tile(shown),
        x_t=None if step.images is None or request.preview == "none" else tile(step.noisy()),
        images=None if images is None else signed(images, request, pipeline.models.name, stopped_at),
        stopped=stopped,
    )


def signed(
    images: Sequence[Image.Image], request: Request, model: str, stopped_at: tuple[int, int] | None = None
) -> list[Image.Image]:
    """Copies of a seeded request's pictures with their settings inside; picture i has seed + i."""
    assert request.seed is not None
    copies = [image.copy() for image in images]
    for seed, copy in enumerate(copies, request.seed):
        copy.info[KEY] = write_infotext(request, seed, model, stopped_at)
    return copies
