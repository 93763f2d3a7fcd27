"""Noise lab: a photo on its way to noise, and what the network makes of it from there."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..form.controls import QUIET
from ..form.inputs import Slider, picked
from ..form.photo import PHOTOS, photo_input, photo_path
from ..runs.errors import told_on_the_page
from ..runs.models import ModelHolder
from ..stage.live import data_uri
from ..stage.opening import cards
from .chart import chart, line
from .view import inside_view

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stable_diffusion.inspect.look_inside import NoisedPhoto
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.schedule import NoiseSchedule

LAST_TIMESTEP = 999
MAX_CHANNELS = 16
TAG = re.compile("<[^>]*>")
SHARES = "What is left of the picture, and how much is noise"
SNR = "Signal-to-noise ratio ᾱ / (1 − ᾱ), logarithmic"
TEXT = """
Training destroys pictures little by little and teaches the network to see through it. At timestep t a picture is
x<sub>t</sub> = √ᾱ<sub>t</sub> x<sub>0</sub> + √(1 − ᾱ<sub>t</sub>) ε: a share of the picture and a share of noise
(Eq. 4, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). Move the slider, and see what the network still believes
the picture to be: its x̂<sub>0</sub> (Eq. 15).
"""


def noise_lab(holder: ModelHolder, menu: gr.Dropdown) -> None:
    """Build the section and make it work."""
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
                placeholder="What the network is told, for example: a cat",
                info="Late in the noise, words are all it has",
                elem_id="inside-told",
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

    async def draw(model: str, path: str | None, t: int, told: str) -> dict[str, Any]:
        with told_on_the_page():
            photo = photo_path(path)
            try:
                async for _ in holder.wait(model):
                    pass
            except ValueError:  # the menu says why
                return gr.skip()
            async with turn:
                return await asyncio.to_thread(lambda: noised(holder.pipeline(model), photo, int(t), told or ""))

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
    """What the lab shows for a photo at timestep t."""
    from stable_diffusion.images import fit_image, read_image, to_images
    from stable_diffusion.inspect.look_inside import add_noise

    side, schedule, vae = pipeline.default_size, pipeline.schedule, pipeline.models.vae
    t = min(t, schedule.num_train_timesteps - 1)
    photo = fit_image(read_image(path), side, side)
    noisy = add_noise(pipeline, photo, t, prompt=prompt)
    shown = [to_images(noisy.pixels)[0]]
    shown += [to_images(vae.decode_finite(latents))[0] for latents in (noisy.x_t, noisy.predicted)]
    in_pixels, decoded, belief = shown
    return {
        "pictures": [
            figure(in_pixels, "x<sub>t</sub> in pixels", "noise added to the photo itself"),
            figure(
                channel_sheet(noisy.x_t),
                "x<sub>t</sub> in latents",
                f"its {noisy.x_t.shape[1]} channels, what is noised",
            ),
            figure(decoded, "x<sub>t</sub> decoded", "the noisy latents as the VAE sees them"),
            figure(belief, "x̂<sub>0</sub>, the belief", "the picture that the network sees in it"),
        ],
        "facts": facts(noisy),
        "charts": charts(schedule, t),
    }


def figure(image: Image.Image, title: str, note: str) -> dict[str, str | None]:
    """A picture with its caption, whose title is HTML."""
    return {"src": data_uri(image), "alt": f"{TAG.sub('', title)}: {note}", "title": title, "note": note}


def facts(noisy: NoisedPhoto) -> list[dict[str, str]]:
    """The numbers of a noise level, and how far the network's belief is from the truth."""
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
    """The schedule's curves with a marker at t."""
    steps = sorted({*range(0, schedule.num_train_timesteps, 10), schedule.num_train_timesteps - 1, t})
    kept = [(step, schedule.alphas_cumprod[step].item()) for step in steps]
    shares = [
        line("ᾱ", kept),
        line("√ᾱ, picture", ((step, math.sqrt(a)) for step, a in kept)),
        line("√(1 − ᾱ), noise", ((step, math.sqrt(1 - a)) for step, a in kept)),
    ]
    snr = line("SNR", ((step, a / (1 - a)) for step, a in kept if a > 1e-6))
    return [
        chart("alphas", SHARES, "timestep t", shares, marker=t, low=0, high=1),
        chart("snr", SNR, "timestep t", [snr], marker=t, log=True),
    ]


def channel_sheet(latents: Tensor) -> Any:
    """The channels of latents (1, C, h, w) as grey pictures on one sheet, a line apart: -3 is black, 3 is white."""
    import torch
    from PIL import Image

    channels = latents[0, :MAX_CHANNELS].cpu()
    columns = math.ceil(math.sqrt(len(channels)))
    rows = math.ceil(len(channels) / columns)
    padded = torch.full((rows * columns, channels.shape[1] + 1, channels.shape[2] + 1), 3.0)
    padded[: len(channels), :-1, :-1] = channels
    sheet = (
        padded.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    )  # (rows (h + 1), columns (w + 1))
    grey = ((sheet / 6 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    scale = max(1, 256 // grey.shape[1])
    image = Image.fromarray(grey.numpy())
    return image.crop((0, 0, image.width - 1, image.height - 1)).resize(
        ((image.width - 1) * scale, (image.height - 1) * scale), Image.Resampling.NEAREST
    )
