"""A request, run: every step becomes an event that the page draws and that programs receive."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from .metadata import KEY, write_infotext
from .request import Request

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One step of a run; the last event carries the pictures to keep.

    index counts 1 to total. x_0 and x_t are pictures of the network's guess and of the noisy latents it saw, those of
    several images side by side; None where no preview was due. images are the pictures to keep, with their settings
    inside, on the last event only; stopped says that they are partial. dropped names the text that was too long.
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
    """Run a request whose sizes are filled in. ValueError, before the first event, where it can't be.

    When `stopped` turns true the run ends at its next step and keeps the picture it has. Closing the generator ends it
    without one.
    """
    photo = None if request.photo is None else fitted_photo(request)
    steps = pipeline.stream(request.prompt, image=photo, **request.arguments())
    event, started = None, time.perf_counter()
    try:
        for step in steps:
            event = _event(pipeline, request, step, (time.perf_counter() - started) / step.index)
            if event.images is None and stopped():
                event = _partial(pipeline, request, step, event)
            yield event
            if event.stopped:
                break
    finally:
        steps.close()
        done = event is not None and event.images is not None and not event.stopped
        at = f"{event.index} of {event.total}" if event else "0"
        log.info("%s at step %s", "finished" if done else "stopped", at)


def fitted_photo(request: Request) -> Image.Image:
    """The request's photo as the run will use it: upright, in RGB, of the request's size."""
    from stable_diffusion.images import fit_image, read_image

    assert request.photo is not None
    assert request.width is not None
    assert request.height is not None
    return fit_image(read_image(request.photo), request.width, request.height, request.fit)


def start_pictures(pipeline: Pipeline, request: Request) -> tuple[Image.Image, Image.Image]:
    """The fitted photo, and the noisy picture that a run from it starts with (Eq. 4, arXiv:2006.11239)."""
    import torch

    from stable_diffusion.images import to_images, to_tensor

    photo, vae = fitted_photo(request), pipeline.models.vae
    plan = pipeline.plan(request.sampler, request.num_inference_steps, request.strength)
    level, _ = plan.steps[0]
    with torch.no_grad():
        x_0 = vae.encode(to_tensor([photo]).to(vae.post_quant_conv.weight))
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(request.seed or 0)).to(x_0)
        return photo, to_images(vae.decode_finite(plan.start(noise, x_0) / level.scale))[0]


def read_prompt(pipeline: Pipeline, text: str) -> tuple[int, int, str]:
    """How many tokens a prompt takes, how many the model can read, and the text beyond them."""
    from stable_diffusion.prompt import tokenize

    tokenizer = pipeline.models.tokenizer
    tokens = tokenize(tokenizer, text)
    return tokens.count, tokenizer.model_max_length - 2, tokens.dropped


def dropped_text(pipeline: Pipeline, request: Request) -> dict[str, str]:
    """The end of prompt and negative prompt that the model can't read, where they are too long."""
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    dropped = {name: read_prompt(pipeline, text)[2] for name, text in texts.items()}
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


def _event(pipeline: Pipeline, request: Request, step: Step, seconds_per_step: float) -> Event:
    x_t = None
    if step.images is not None and request.preview != "none":
        x_t = tile(_noisy(pipeline, step))
    return Event(
        index=step.index,
        total=step.total,
        timestep=step.timestep,
        sigma=step.sigma / step.alpha if step.alpha else math.inf,
        seed=step.seed,
        seconds_per_step=seconds_per_step,
        x_0=None if step.images is None else tile(step.images),
        x_t=x_t,
        images=None if step.result is None else _signed(pipeline, request, step.result.images, step.seed),
    )


def _noisy(pipeline: Pipeline, step: Step) -> list[Image.Image]:
    from stable_diffusion.images import to_images
    from stable_diffusion.preview import linear_preview

    return to_images(linear_preview(pipeline.models.vae, step.latents / math.hypot(step.alpha, step.sigma)))


def _partial(pipeline: Pipeline, request: Request, step: Step, event: Event) -> Event:
    from stable_diffusion.images import to_images

    pictures = to_images(pipeline.models.vae.decode_finite(step.denoised))
    signed = _signed(pipeline, request, pictures, step.seed, (step.index, step.total))
    return replace(event, x_0=tile(pictures), images=signed, stopped=True)


def _signed(
    pipeline: Pipeline,
    request: Request,
    images: list[Image.Image],
    seed: int,
    stopped_at: tuple[int, int] | None = None,
) -> list[Image.Image]:
    """Copies of the pictures with their settings inside; picture i has seed + i."""
    name, signed = pipeline.models.name, []
    for offset, image in enumerate(images):
        copy = image.copy()
        copy.info[KEY] = write_infotext(request, seed + offset, name, stopped_at)
        signed.append(copy)
    return signed
