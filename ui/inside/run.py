"""Inside a run: where the words go, guidance, and the match of picture and prompt, step by step."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request, without_loras

from ..controls import Controls, Values, guidance_control, settings_of, steps_control
from ..limits import prepare
from ..live import data_uri
from ..models import ModelHolder
from .lane import connect_lane
from .view import curve, inside_view

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.clip import CLIP
    from stable_diffusion.inside import InsideStep
    from stable_diffusion.pipeline import Pipeline

Film = dict[str, Any]
MAX_MAP = 32
"""Heat maps are sent with at most this many rows and columns; the page enlarges them smoothly."""


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
        look = gr.Button("Look inside", variant="primary", elem_id="inside-look", scale=3)
        stop = gr.Button("Stop", elem_id="inside-stop", scale=1, min_width=90)
    view = inside_view("run")

    def record(values: Values) -> Iterator[Film]:
        yield from films(*prepare(holder, settings_of(controls, values)))

    connect_lane(holder, menu, (look, stop), record, set(controls.values()), view)
    return controls


def films(pipeline: Pipeline, request: Request) -> Iterator[Film]:
    """The record of a run as it grows, a frame a step."""
    from stable_diffusion.heatmap import prompt_words, word_heat
    from stable_diffusion.inside import look_inside
    from stable_diffusion.preview import Preview

    told = without_loras(request.prompt)
    words = prompt_words(pipeline.models.tokenizer, told)
    draw = Preview(pipeline.models.decoder_for(request.preview), request.preview)
    match = matcher(pipeline, told)
    film: Film = {"words": [word.text for word in words], "scale": request.guidance_scale, "frames": [], "charts": {}}
    pulls, matches, total = [], [], None
    for inside in look_inside(pipeline, dataclasses.replace(request, preview="none")):
        step = inside.step
        heat = word_heat(inside.heat, words)[0]
        total = heat if total is None else total + heat
        unconditional, conditional, guided = guesses(inside, draw)
        frame = {
            "index": step.index,
            "total": step.total,
            "timestep": round(step.timestep),
            "seed": step.seed,
            "x0": data_uri(guided),
            "conditional": data_uri(conditional),
            "unconditional": data_uri(unconditional),
            "heat": encode_maps(heat),
            "mean": encode_maps(total / step.index),
        }
        film = {**film, "frames": [*film["frames"], frame]}
        if inside.unconditional is not None:
            pull = (inside.conditional - inside.unconditional).square().mean().sqrt().item()
            pulls.append((step.index, pull))
        if match is not None:
            matches.append((step.index, match(guided)))
        charts = {"pull": curve("RMS distance", pulls), "match": curve("cosine", matches)}
        yield {**film, "charts": {name: {"series": [line], "x": "step"} for name, line in charts.items()}}


def guesses(inside: InsideStep, draw: Callable) -> tuple[Image.Image | None, Image.Image, Image.Image]:
    """Pictures of the guesses without words, with words, and guided; where a run is not guided, the last two alone."""
    import torch

    latents = [inside.unconditional, inside.conditional, inside.step.denoised]
    pictures = draw(torch.cat([one for one in latents if one is not None]))
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


def encode_maps(maps: Tensor) -> dict[str, Any]:
    """Heat maps (W, h, w) as bytes, each stretched from its least heat to its most, with those two in per cent."""
    import torch
    from torch.nn import functional as F

    height, width = (min(side, MAX_MAP) for side in maps.shape[1:])
    small = F.adaptive_avg_pool2d(maps, (height, width)).flatten(1)
    low, high = small.amin(dim=1, keepdim=True), small.amax(dim=1, keepdim=True)
    scaled = ((small - low) / (high - low).clamp(min=1e-8) * 255).round().to(torch.uint8)
    return {
        "size": [height, width],
        "bytes": base64.b64encode(scaled.cpu().numpy().tobytes()).decode("ascii"),
        "ranges": (100 * torch.cat([low, high], dim=1)).tolist(),
    }
