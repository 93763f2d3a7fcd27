"""Inside a run: guidance, attention to the words, and the match of picture and prompt, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request, without_loras

from ...form.controls import Controls, Values, guidance_control, request_of, run_buttons, steps_control
from ...runs.backend import Backend
from ...runs.match import clip_for
from ...runs.models import LoadedModels
from ...runs.registry import new_run_id
from ...stage.live import data_uri
from .chart import chart, line
from .heat import head_sheet, heat_maps, mean_heat
from .lane import Look, connect_lane
from .view import HERE, Value, formula, inside_view

if TYPE_CHECKING:
    from stable_diffusion.inspect.look_inside import InsideStep
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.preview import Preview

Points = list[tuple[int, float]]
Match = Callable[[Image.Image], float]
PULL = "The pull of the words: distance between the two guesses (RMS)"
TEXT = "**Inside a run.** Step by step: what it is given, what it guesses, where it looks."
FORMULA = """
At each step the network guesses the picture twice, without and with your words. The guided guess starts at the first
and goes through the second and beyond: uncond + w (cond − uncond) (Eq. 6,
[arXiv:2207.12598](https://arxiv.org/abs/2207.12598)). Then the sampler removes a little noise.

In every layer each place of the picture attends to the words: softmax(QKᵀ/√d) (Eq. 1,
[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)). The glow is bright where the attention to a word is high,
averaged over heads and layers as in DAAM ([arXiv:2210.04885](https://arxiv.org/abs/2210.04885)), or in one of them.
"""
MATCH = "Match of the guided guess and the prompt, measured by CLIP (cosine, arXiv:2103.00020)"


def inside_a_run(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    defaults = models.defaults()
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a cat face next to a pizza", label="Prompt", scale=4, elem_id="inside-prompt")
        seed = gr.Textbox("2", label="Seed", placeholder="random", scale=1, min_width=90, elem_id="inside-seed")
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(defaults, "inside-steps", scale=2, min_width=150)
        controls |= guidance_control(defaults, "inside-guidance", scale=2, min_width=150)
    buttons = run_buttons("Look inside", "inside-look", "inside-look-stop")
    view = inside_view("run", (HERE / "run.js").read_text(encoding="utf-8"))
    formula(FORMULA)

    def look(values: Values) -> Look:
        return recordings, [request_of(controls, values)]

    connect_lane(models, backend, menu, buttons, look, controls, view)


def recordings(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[Value], None]) -> Inquiry[None]:
    """Run a request and show the view's value for each step: its own frame alone.

    All frames, and the heat of each layer and head over all steps, come with the last one: a page that received them at
    every step would soon have no time for anything else.
    """
    [request] = requests
    # CLIP is loaded here, and not in the engine's turns.
    return recorded(pipeline, request, matcher(pipeline, without_loras(request.prompt)), show)


def recorded(pipeline: Pipeline, request: Request, match: Match | None, show: Callable[[Value], None]) -> Inquiry[None]:
    """Run a request as `recordings` does; `match` measures the match of a picture and the prompt."""
    from stable_diffusion.inspect.heat_maps import attention_layers, head_heat, prompt_words
    from stable_diffusion.inspect.look_inside import Observer, next_inside
    from stable_diffusion.preview import Preview

    prompt = without_loras(request.prompt)
    words = prompt_words(pipeline.models.tokenizer, prompt)
    assert request.preview is not None, "a prepared request is complete"
    run = pipeline.begin(dataclasses.replace(request, preview="none"))
    observer = Observer(run.denoise, partial(head_heat, words=words))
    none, preview = run.preview(), Preview(run.render, request.preview)
    run_id, texts = new_run_id(), [word.text for word in words]
    frames: list[Value] = []
    pulls: Points = []
    matches: Points = []
    heads = None
    while run.query is not None:
        inside = yield from next_inside(run, none, observer)
        step = inside.step
        layers = attention_layers(pipeline.models.unet, *step.latents.shape[2:])
        here = inside.heat[0]
        heads = here if heads is None else heads + here
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
            "heat": heat_maps(mean_heat(layers, here)),
            "mean": heat_maps(mean_heat(layers, heads / step.index)),
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
        if step.final is not None:
            recording |= {"frames": frames, "heads": head_sheet(layers, heads / step.index) if words else None}
        show(recording)


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
