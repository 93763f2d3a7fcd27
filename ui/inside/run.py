"""Inside a run: guidance, attention to the words, and the match of picture and prompt, step by step."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request, without_loras

from ..form.controls import Controls, Values, guidance_control, request_of, steps_control
from ..runs.backend import Backend
from ..runs.match import clip_for
from ..runs.models import LoadedModels
from ..runs.registry import new_run_id
from ..stage.live import data_uri
from .chart import chart, line
from .lane import Look, connect_lane, lane_buttons
from .view import HERE, Value, inside_view

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stable_diffusion.inspect.look_inside import InsideStep
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.preview import Preview

Points = list[tuple[int, float]]
Match = Callable[[Image.Image], float]
MAP_SIDE, SHADES = 32, 64
"""Heat maps are sent with at most so many rows, columns and shades; the page enlarges them smoothly."""
GLOW = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
PULL = "The pull of the words: distance between the two guesses (RMS)"
MATCH = "Match of the guided guess and the prompt, measured by CLIP (cosine, arXiv:2103.00020)"


def inside_a_run(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> Controls:
    """Build the section, connect its events, and return its controls."""
    defaults = models.defaults()
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a cat face next to a pizza", label="Prompt", scale=4, elem_id="inside-prompt")
        seed = gr.Textbox("2", label="Seed", placeholder="random", scale=1, min_width=90, elem_id="inside-seed")
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(defaults, "inside-steps", scale=2, min_width=150)
        controls |= guidance_control(defaults, "inside-guidance", scale=2, min_width=150)
    with gr.Row(elem_classes="run-row"):
        buttons = lane_buttons("Look inside", "inside-look")
    view = inside_view("run", (HERE / "run.js").read_text(encoding="utf-8"))

    def look(values: Values) -> Look:
        return recordings, [request_of(controls, values)]

    connect_lane(models, backend, menu, buttons, look, controls, view)
    return controls


def recordings(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[Value], None]) -> Inquiry[None]:
    """Run a request and show the view's value for each step: its own frame alone, and with the last one all frames.

    A page that received all frames at every step would soon have no time for anything else.
    """
    [request] = requests
    # CLIP is loaded here, and not in the engine's turns.
    return recorded(pipeline, request, matcher(pipeline, without_loras(request.prompt)), show)


def recorded(pipeline: Pipeline, request: Request, match: Match | None, show: Callable[[Value], None]) -> Inquiry[None]:
    """Run a request as `recordings` does; `match` measures the match of a picture and the prompt."""
    from stable_diffusion.inspect.heat_maps import prompt_words, word_heat
    from stable_diffusion.inspect.look_inside import Observer, next_inside
    from stable_diffusion.preview import Preview

    prompt = without_loras(request.prompt)
    words = prompt_words(pipeline.models.tokenizer, prompt)
    assert request.preview is not None, "a prepared request is complete"
    run = pipeline.begin(dataclasses.replace(request, preview="none"))
    observer, none, preview = Observer(run.denoise), run.preview(), Preview(run.render, request.preview)
    run_id, texts = new_run_id(), [word.text for word in words]
    frames: list[Value] = []
    pulls: Points = []
    matches: Points = []
    total_heat = None
    while run.query is not None:
        inside = yield from next_inside(run, none, observer)
        step = inside.step
        heat = word_heat(inside.heat, words)[0]
        total_heat = heat if total_heat is None else total_heat + heat
        x_t, unconditional, conditional, guided = pictures_of(inside, preview)
        frame: Value = {
            "index": step.index,
            "total": step.total,
            "timestep": round(step.timestep),
            "seed": step.seed,
            "xt": data_uri(x_t),
            "x0": data_uri(guided),
            "conditional": data_uri(conditional),
            "unconditional": None if unconditional is None else data_uri(unconditional),
            "heat": heat_maps(heat),
            "mean": heat_maps(total_heat / step.index),
        }
        frames.append(frame)
        if inside.unconditional is not None:
            pulls.append((step.index, (inside.conditional - inside.unconditional).square().mean().sqrt().item()))
        if match is not None:
            matches.append((step.index, match(guided)))
        recording: Value = {
            "run": run_id,
            "words": texts,
            "scale": request.guidance_scale,
            "frame": frame,
            "charts": charts(pulls, matches, step.total),
        }
        show(recording if step.final is None else {**recording, "frames": frames})


def charts(pulls: Points, matches: Points, total: int) -> str:
    """Return the charts of both measures over the steps of a run of `total` steps."""
    pull, match = line("RMS distance", pulls), line("cosine", matches)
    return chart("pull", PULL, "step", [pull], low=0, right=total) + chart("match", MATCH, "step", [match], right=total)


def pictures_of(
    inside: InsideStep, preview: Preview
) -> tuple[Image.Image, Image.Image | None, Image.Image, Image.Image]:
    """Return pictures of x_t and of the guesses without words (None without guidance), with words, and guided.

    The safety checker sees the guesses; x_t is blurred with the guided one.
    """
    import torch

    step = inside.step
    latents = [inside.unconditional, inside.conditional, step.denoised]
    pictures = preview(torch.cat([one for one in latents if one is not None]))
    assert pictures is not None, "Inside has no control for the preview"
    unconditional = pictures.images[0] if len(pictures.images) == 3 else None
    # The last step of a run already has its final picture.
    guided, found = (pictures.images[-1], pictures.found[-1:])
    if step.images is not None:
        guided, found = step.images[0], step.found
    return step.render.coarse(step.latents / step.level.scale, found)[0], unconditional, pictures.images[-2], guided


def matcher(pipeline: Pipeline, prompt: str) -> Match | None:
    """Return a function that measures the match of a picture and the prompt; None for a model without CLIP."""
    clip = clip_for(Path(pipeline.models.source), prompt, str(pipeline.models.unet.conv_in.weight.device))
    return None if clip is None else lambda image: clip.similarity([image], [prompt]).item()


def heat_maps(maps: Tensor) -> list[dict[str, str]]:
    """Return heat maps (W, h, w) as small pictures, each scaled from its least heat to its most.

    Over a picture they glow where the attention is high and darken the rest.
    """
    import torch
    from torch.nn import functional as F

    height, width = (min(side, MAP_SIDE) for side in maps.shape[1:])
    small = F.adaptive_avg_pool2d(maps, (height, width)).cpu()
    low, high = small.amin(dim=(1, 2)), small.amax(dim=(1, 2))
    scaled = (small - low[:, None, None]) / (high - low).clamp(min=1e-8)[:, None, None]
    shades = (scaled * (SHADES - 1)).round().to(torch.uint8).numpy()
    return [
        {"src": glowing(one), "low": f"{100 * least:.3g}", "high": f"{100 * most:.3g}"}
        for one, least, most in zip(shades, low.tolist(), high.tolist(), strict=True)
    ]


def glowing(shades: np.ndarray) -> str:
    """Return shades (h, w) as a PNG with the colours of heat, as the source of an img element."""
    image = Image.fromarray(shades).convert("P")
    colours, alphas = palette()
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=alphas)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=1)
def palette() -> tuple[bytes, bytes]:
    """Return the colours of heat from least to most, as RGB, and their opacities."""
    shares = [shade / (SHADES - 1) for shade in range(SHADES)]
    colours, alphas = bytearray(), bytes(round(255 * (0.45 + 0.3 * share)) for share in shares)
    for share in shares:
        place = min(share, 0.9999) * (len(GLOW) - 1)
        below, above = GLOW[int(place)], GLOW[int(place) + 1]
        colours += bytes(round(a + (b - a) * (place % 1)) for a, b in zip(below, above, strict=True))
    return bytes(colours), alphas
