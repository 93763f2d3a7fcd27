"""Noise lab: a photo with more and more noise, and the network's guess of the photo from there."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Any

import gradio as gr

from stable_diffusion.request import RequestError

from ..form.controls import QUIET
from ..form.inputs import Slider, picked
from ..form.photo import PHOTOS, photo_input, require_photo
from ..runs.errors import errors_on_page
from ..runs.models import LoadedModels
from ..stage.live import data_uri
from ..stage.opening import cards
from .chart import chart, line
from .view import inside_view

if TYPE_CHECKING:
    from stable_diffusion.inspect.look_inside import NoisedPhoto
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.schedule import NoiseSchedule

LAST_TIMESTEP = 999
TAG = re.compile("<[^>]*>")
SHARES = "Shares of picture and noise"
SNR = "Signal-to-noise ratio ᾱ / (1 − ᾱ), logarithmic"
TEXT = """
Training adds noise to pictures and teaches the network to remove it. At timestep t a picture is
x<sub>t</sub> = √ᾱ<sub>t</sub> x<sub>0</sub> + √(1 − ᾱ<sub>t</sub>) ε: a share of the picture and a share of noise
(Eq. 4, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). Move the slider, and compare the noisy picture with
x̂<sub>0</sub>, the network's guess of the picture without noise (Eq. 15).
"""


def noise_lab(models: LoadedModels, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=False, elem_classes="workbench"):
        with gr.Column(scale=2, min_width=260):
            photo = photo_input(
                value=str(PHOTOS / "cat.jpg"),
                label="Photo",
                sources=["upload", "clipboard"],
                height=220,
                elem_id="inside-photo",
            )
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="A description for the network, for example: a cat",
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

    def pick(event: gr.SelectData) -> str:
        return str(picked(event, examples))

    photos.select(pick, None, photo, **QUIET)
    turn = asyncio.Semaphore(1)

    async def draw(model: str, path: str | None, t: int, prompt: str) -> dict[str, Any]:
        with errors_on_page():
            photo = require_photo(path)
            try:
                async for _ in models.wait(model):
                    pass
            except RequestError:  # the menu says why
                return gr.skip()
            async with turn:
                return await asyncio.to_thread(lambda: noised(models.pipeline(model), photo, int(t), prompt or ""))

    # The view itself asks for its first picture, when it is first seen.
    gr.on(
        [view.load, menu.change, photo.change, timestep.change, prompt.change],
        draw,
        [menu, photo, timestep, prompt],
        view,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_visibility="private",
    )


def noised(pipeline: Pipeline, path: str, t: int, prompt: str) -> dict[str, Any]:
    """Return the view's value for a photo at timestep t: pictures, numbers and charts."""
    from stable_diffusion.images import fit_image, read_image
    from stable_diffusion.inspect.look_inside import add_noise
    from stable_diffusion.preview import Renderer

    side, schedule = pipeline.default_size, pipeline.schedule
    t = min(t, schedule.num_train_timesteps - 1)
    photo = fit_image(read_image(path), side, side)
    noisy = add_noise(pipeline, photo, t, prompt=prompt)
    captions = (
        ("x<sub>t</sub> in pixels", "noise added to the photo itself"),
        ("x<sub>t</sub> in latents", f"the {noisy.x_t.shape[1]} channels that a run adds noise to"),
        ("x<sub>t</sub> decoded", "the noisy latents as a picture"),
        ("x̂<sub>0</sub>, the guess", "the network's guess of the photo"),
    )
    pictures = [
        {"src": data_uri(picture), "alt": f"{TAG.sub('', title)}: {note}", "title": title, "note": note}
        for picture, (title, note) in zip(noisy.pictures(Renderer(pipeline.models)), captions, strict=True)
    ]
    return {"pictures": pictures, "facts": facts(noisy), "charts": charts(schedule, t)}


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
        "SNR": f"{snr:.3g}" if snr else "0: nothing is left",
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
    snr = line("SNR", ((step, a / (1 - a)) for step, a in alphas if a > 1e-6))
    return [
        chart("alphas", SHARES, "timestep t", shares, marker=t, low=0, high=1),
        chart("snr", SNR, "timestep t", [snr], marker=t, log=True),
    ]
