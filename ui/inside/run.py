"""Inside a run: where the words go, guidance, and the match of picture and prompt, step by step."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request, without_loras

from ..form.controls import Controls, Values, guidance_control, settings_of, steps_control
from ..runs.limits import prepare
from ..runs.models import ModelHolder
from ..stage.live import data_uri, new_run
from .chart import chart, line
from .lane import connect_lane, lane_buttons
from .view import HERE, inside_view

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.clip import CLIP
    from stable_diffusion.inspect.look_inside import InsideStep
    from stable_diffusion.pipeline import Pipeline

Film = dict[str, Any]
Points = list[tuple[int, float]]
MAX_MAP, SHADES = 32, 64
"""Heat maps are sent with at most so many rows, columns and shades; the page enlarges them smoothly."""
GLOW = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
PULL = "The pull of the words: distance of the two guesses (RMS)"
MATCH = "Match: how well CLIP thinks the guided guess fits the prompt (cosine, arXiv:2103.00020)"


def inside_a_run(holder: ModelHolder, menu: gr.Dropdown) -> Controls:
    """Build the section and make it work; its controls."""
    defaults = holder.defaults
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a cat face next to a pizza", label="Prompt", scale=4, elem_id="inside-prompt")
        seed = gr.Textbox("2", label="Seed", placeholder="random", scale=1, min_width=90, elem_id="inside-seed")
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(defaults, "inside-steps", scale=2, min_width=150)
        controls |= guidance_control(defaults, "inside-guidance", scale=2, min_width=150)
    with gr.Row(elem_classes="run-row"):
        buttons = lane_buttons("Look inside", "inside-look")
    view = inside_view("run", (HERE / "run.js").read_text(encoding="utf-8"))

    def record(values: Values) -> Iterator[Film]:
        yield from films(*prepare(holder, settings_of(controls, values)))

    connect_lane(holder, menu, buttons, record, set(controls.values()), view)
    return controls


def films(pipeline: Pipeline, request: Request) -> Iterator[Film]:
    """A run, step by step: each with its own frame alone, the last one with all of them.

    A page that is sent them all at every step has soon no time for anything else.
    """
    from stable_diffusion.inspect.heat_maps import prompt_words, word_heat
    from stable_diffusion.inspect.look_inside import look_inside
    from stable_diffusion.preview import Preview, Renderer

    told = without_loras(request.prompt)
    words = prompt_words(pipeline.models.tokenizer, told)
    assert request.preview is not None
    draw = Preview(Renderer(pipeline.models), request.preview)
    match = matcher(pipeline, told)
    film: Film = {"run": new_run(), "words": [word.text for word in words], "scale": request.guidance_scale}
    frames, pulls, matches, total = [], [], [], None
    for inside in look_inside(pipeline, dataclasses.replace(request, preview="none")):
        step = inside.step
        heat = word_heat(inside.heat, words)[0]
        total = heat if total is None else total + heat
        unconditional, conditional, guided = guesses(inside, draw)
        frames.append(
            {
                "index": step.index,
                "total": step.total,
                "timestep": round(step.timestep),
                "seed": step.seed,
                "xt": data_uri(step.noisy()[0]),
                "x0": data_uri(guided),
                "conditional": data_uri(conditional),
                "unconditional": data_uri(unconditional),
                "heat": heat_maps(heat),
                "mean": heat_maps(total / step.index),
            }
        )
        if inside.unconditional is not None:
            pull = (inside.conditional - inside.unconditional).square().mean().sqrt().item()
            pulls.append((step.index, pull))
        if match is not None:
            matches.append((step.index, match(guided)))
        news = {**film, "frame": frames[-1], "charts": charts(pulls, matches, step.total)}
        yield news if step.final is None else {**news, "frames": frames}


def charts(pulls: Points, matches: Points, total: int) -> str:
    """How far the words pull, and how well the picture fits them, by step of a run of `total`."""
    pull, match = line("RMS distance", pulls), line("cosine", matches)
    return chart("pull", PULL, "step", [pull], low=0, right=total) + chart("match", MATCH, "step", [match], right=total)


def guesses(inside: InsideStep, draw: Callable) -> tuple[Image.Image | None, Image.Image, Image.Image]:
    """Pictures of the guesses without words, with words, and guided; where a run is not guided, the last two alone."""
    import torch

    latents = [inside.unconditional, inside.conditional, inside.step.denoised]
    pictures = draw(torch.cat([one for one in latents if one is not None])).images
    unconditional = pictures[0] if len(pictures) == 3 else None
    # The last step of a run already carries the picture that it ends with.
    guided = pictures[-1] if inside.step.images is None else inside.step.images[0]
    return unconditional, pictures[-2], guided


def matcher(pipeline: Pipeline, prompt: str) -> Callable[[Image.Image], float] | None:
    """A function that measures how well a picture fits the prompt; None for a model without the folder `clip`."""
    folder = Path(pipeline.models.source) / "clip"
    if not folder.is_dir() or not prompt.strip():
        return None
    clip = load_clip(folder, str(pipeline.models.unet.conv_in.weight.device))
    return lambda image: clip.similarity([image], [prompt]).item()


@lru_cache(maxsize=1)
def load_clip(folder: Path, device: str) -> CLIP:
    """The CLIP that goes with a model, kept for the next run."""
    from stable_diffusion.clip import CLIP

    return CLIP.from_pretrained(folder, device=device)


def heat_maps(maps: Tensor) -> list[dict[str, str]]:
    """Heat maps (W, h, w) as small pictures, each from its least heat to its most, and those two in per cent.

    They are to be laid over a picture: where it was looked at most they glow, elsewhere they are dark.
    """
    import torch
    from torch.nn import functional as F

    height, width = (min(side, MAX_MAP) for side in maps.shape[1:])
    small = F.adaptive_avg_pool2d(maps, (height, width)).cpu()
    low, high = small.amin(dim=(1, 2)), small.amax(dim=(1, 2))
    scaled = (small - low[:, None, None]) / (high - low).clamp(min=1e-8)[:, None, None]
    shades = (scaled * (SHADES - 1)).round().to(torch.uint8).numpy()
    return [
        {"src": glowing(one), "low": f"{100 * least:.3g}", "high": f"{100 * most:.3g}"}
        for one, least, most in zip(shades, low.tolist(), high.tolist(), strict=True)
    ]


def glowing(shades: Any) -> str:
    """Shades (h, w) as a PNG, as text for an img element."""
    image = Image.fromarray(shades).convert("P")
    colours, alphas = palette()
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=alphas)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=1)
def palette() -> tuple[bytes, bytes]:
    """The colours of heat from least to most, RGB, and how much they cover what is below."""
    shares = [shade / (SHADES - 1) for shade in range(SHADES)]
    colours, alphas = bytearray(), bytes(round(255 * (0.45 + 0.3 * share)) for share in shares)
    for share in shares:
        place = min(share, 0.9999) * (len(GLOW) - 1)
        below, above = GLOW[int(place)], GLOW[int(place) + 1]
        colours += bytes(round(a + (b - a) * (place % 1)) for a, b in zip(below, above, strict=True))
    return bytes(colours), alphas
