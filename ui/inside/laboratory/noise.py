"""Noise lab: a photo with more and more noise, and the network's guess of the photo from there."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request, RequestError

from ...form.controls import QUIET
from ...form.inputs import Slider, picked
from ...form.photo import photo_input, require_photo
from ...runs.backend import Backend
from ...runs.errors import errors_on_page
from ...runs.events import Waiting
from ...runs.models import LoadedModels
from ...runs.visitors import visitor_of
from ...stage.live import data_uri
from ...stage.opening import PHOTOS, cards
from .chart import chart, line, number
from .view import Value, formula, inside_view, numbers_view

if TYPE_CHECKING:
    from stable_diffusion.inspect.look_inside import NoisedPhoto
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.schedule import NoiseSchedule

LAST_TIMESTEP = 999
TAG = re.compile("<[^>]*>")
SHARES = "Shares of picture and noise"
SNR = "Signal-to-noise ratio ᾱ / (1 − ᾱ), logarithmic"
TEXT = "**Noise lab.** A photo drowns in noise, and the network guesses what was there. Move the slider."
FORMULA = """
Training adds noise to pictures and teaches the network to remove it. At timestep t a picture is
x<sub>t</sub> = √ᾱ<sub>t</sub> x<sub>0</sub> + √(1 − ᾱ<sub>t</sub>) ε: a share of the picture and a share of noise
(Eq. 4, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). x̂<sub>0</sub> is the network's guess of the picture
without noise (Eq. 15). In a model of zero terminal SNR nothing of the picture is left at the last timestep
([arXiv:2305.08891](https://arxiv.org/abs/2305.08891)).
"""


def noise_lab(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=False, elem_classes="workbench"):
        with gr.Column(scale=2, min_width=260):
            photo = photo_input(
                value=str(PHOTOS / "cat.jpg"),
                label="Photo",
                sources=["upload", "clipboard"],
                height=170,
                elem_id="inside-photo",
            )
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="For example: a cat",
                info="It matters most where little of the photo is left",
                elem_id="inside-photo-words",
            )
            examples = sorted(PHOTOS.glob("*.jpg"))
            photos = cards([(path, path.stem) for path in examples], "Other photos", "inside-photos")
        with gr.Column(scale=5, min_width=320):
            timestep = Slider(
                0, LAST_TIMESTEP, value=400, step=1, label="Timestep t", info="0: the photo", elem_id="inside-t"
            )
            view = inside_view("noise", 'trigger("load")')
    numbers = numbers_view("noise")
    formula(FORMULA)

    def pick(event: gr.SelectData) -> str:
        return str(picked(event, examples))

    photos.select(pick, None, photo, **QUIET)

    async def draw(
        model: str, path: str | None, t: int, prompt: str, visitor: gr.Request
    ) -> AsyncIterator[tuple[Value, Value]]:
        yield gr.skip(), gr.skip()  # an event that yields nothing would empty the views
        with errors_on_page():
            photo = require_photo(path)
            try:
                async for _ in models.wait(model):
                    pass
            except RequestError:  # the menu says why
                return
            side = (await asyncio.to_thread(models.defaults, model)).side
            request = Request(prompt or "", model=model, image=photo, width=side, height=side, guidance_scale=1.0)
            request = request.with_values(num_inference_steps=1)
            async with aclosing(backend.inspect(partial(noised, int(t)), [request], visitor_of(visitor))) as values:
                async for value in values:
                    if not isinstance(value, Waiting):
                        yield value

    # The view itself asks for its first picture, when it is first seen.
    gr.on(
        [view.load, menu.change, photo.change, timestep.change, prompt.change],
        draw,
        [menu, photo, timestep, prompt],
        [view, numbers],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_visibility="private",
    )


def noised(
    t: int, pipeline: Pipeline, requests: Sequence[Request], show: Callable[[tuple[Value, Value]], None]
) -> Inquiry[None]:
    """Show the values of both views for the photo of a request at timestep t: pictures, and numbers with charts."""
    from stable_diffusion.inspect.look_inside import noised_photo
    from stable_diffusion.preview import Renderer

    [request] = requests
    assert isinstance(request.image, Image.Image), "a prepared request has its photo as a picture"
    schedule = pipeline.schedule
    t = min(t, schedule.num_train_timesteps - 1)
    noisy = yield from noised_photo(pipeline, request.image, t, prompt=request.prompt)
    captions = (
        ("x<sub>t</sub> in pixels", "the noisy photo"),
        ("x<sub>t</sub> in latents", f"the {noisy.x_t.shape[1]} channels of a run"),
        ("x<sub>t</sub> decoded", "these as a picture"),
        ("x̂<sub>0</sub>, the guess", "of the network"),
    )
    images = yield from noisy.pictures(Renderer(pipeline.models))
    pictures = [
        {"src": data_uri(picture), "alt": f"{TAG.sub('', title)}: {note}", "title": title, "note": note}
        for picture, (title, note) in zip(images, captions, strict=True)
    ]
    show(({"pictures": pictures}, {"facts": facts(noisy), "charts": charts(schedule, t)}))


def facts(noisy: NoisedPhoto) -> list[dict[str, str]]:
    """Return the numbers of a noise level, and the error of the network's guess."""
    level = noisy.level
    snr = (level.alpha / level.sigma) ** 2
    error = (noisy.predicted - noisy.x_0).square().mean().sqrt().item()
    numbers = {
        "Timestep t": f"{level.timestep:.0f}",
        "ᾱ": f"{level.alpha**2:.4f}",
        "Picture √ᾱ": f"{level.alpha:.3f}",
        "Noise √(1 − ᾱ)": f"{level.sigma:.3f}",
        "SNR": number(snr) if snr else "0: nothing is left",
        "Error of x̂<sub>0</sub> (RMS)": f"{error:.3f}",
    }
    return [{"name": name, "text": text} for name, text in numbers.items()]


def charts(schedule: NoiseSchedule, t: int) -> list[str]:
    """Return the schedule's curves with a marker at t."""
    steps = sorted({*range(0, schedule.num_train_timesteps, 10), schedule.num_train_timesteps - 1, t})
    alphas = [(step, schedule.alphas_cumprod[step].item()) for step in steps]
    shares = [
        line("ᾱ", alphas),
        line("√ᾱ, picture", ((step, math.sqrt(a)) for step, a in alphas)),
        line("√(1 − ᾱ), noise", ((step, math.sqrt(1 - a)) for step, a in alphas)),
    ]
    snr = line("SNR", ((step, a / (1 - a)) for step, a in alphas))
    return [
        chart("alphas", SHARES, "timestep t", shares, marker=t, low=0, high=1),
        chart("snr", SNR, "timestep t", [snr], marker=t, log=True),
    ]
