"""Samplers side by side: the same prompt, noise and network; only the way from noise to picture differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..live import data_uri
from ..models import ModelHolder
from ..options import SAMPLERS
from ..request import Request
from ..tab import QUEUE, clear_error, read_seed
from .view import curve, inside_view

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stable_diffusion.pipeline import Pipeline

MAX_STEPS = 50
THUMBNAIL = 144
CHOSEN = ("ddpm", "ddim", "euler_a", "dpmpp_2m")
TEXT = """
A sampler asks the network again and again for x̂<sub>0</sub>, and walks from noise towards it. DDPM and the ancestral
ones add fresh noise after each step (Algorithm 2, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)), so that they
end elsewhere; DDIM, Euler and their kin follow one smooth path
(Eq. 12, [arXiv:2010.02502](https://arxiv.org/abs/2010.02502)). Few steps show best who arrives early.
"""


def samplers_side_by_side(holder: ModelHolder, menu: gr.Dropdown) -> None:
    """Build the section and make it work."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a red apple, fluent 3d style", label="Prompt", scale=4, elem_id="inside-compare-prompt")
        seed = gr.Textbox("1", label="Seed", placeholder="random", scale=1, min_width=90)
        steps = gr.Slider(
            1, MAX_STEPS, 10, step=1, label="Steps", scale=2, min_width=150, elem_id="inside-compare-steps"
        )
    chosen = gr.CheckboxGroup(
        [(label, name) for name, label in SAMPLERS.items()],
        value=list(CHOSEN),
        label="Samplers",
        elem_id="inside-samplers-chosen",
    )
    with gr.Row(elem_classes="run-row"):
        compare = gr.Button("Compare", variant="primary", elem_id="inside-compare", scale=3)
        stop = gr.Button("Stop", elem_id="inside-compare-stop", scale=1, min_width=90)
    view = inside_view("samplers")

    def run(model: str, text: str, seed_text: str, n: int, names: list[str]) -> Iterator[dict[str, Any]]:
        try:
            if not names:
                raise ValueError("samplers must name at least one, got none: choose some")
            defaults = holder.defaults_of(model)
            request = Request(
                prompt=text,
                seed=read_seed(seed_text),
                num_inference_steps=n,
                guidance_scale=defaults.guidance_scale,
                preview=defaults.preview,
            )
            pipeline = holder.pipeline(model)
            yield from comparisons(pipeline, request.for_side(pipeline.default_size), names)
        except ValueError as error:
            raise clear_error(error) from None

    running = compare.click(
        run,
        [menu, prompt, seed, steps, chosen],
        view,
        show_progress="minimal",
        concurrency_id=QUEUE,
        concurrency_limit=1,
        api_visibility="private",
    )
    stop.click(None, cancels=[running], queue=False, api_visibility="private")


def comparisons(pipeline: Pipeline, request: Request, names: list[str]) -> Iterator[dict[str, Any]]:
    """What the view shows as the samplers run, one after the other: strips, and the paths of those that are done."""
    from stable_diffusion.pipeline import resolve_seed

    options = {**request.arguments(), "seed": resolve_seed(request.seed)}
    rows: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    latents: list[dict[str, Any]] = []
    for name in names:
        row, guesses, states = {"label": SAMPLERS[name], "frames": []}, [], []
        for step in pipeline.stream(request.prompt, **{**options, "sampler": name}):
            guesses.append(step.denoised)
            # Euler's latents grow with sigma: comparable are those of unit variance.
            states.append(step.latents / math.hypot(step.alpha, step.sigma))
            frame = {"index": step.index, "total": step.total, "src": thumbnail(step.images)}
            row = {**row, "frames": [*row["frames"], frame]}
            if step.result is not None:
                final = step.result.latents
                paths = [*paths, curve(SAMPLERS[name], distances(guesses, final))]
                latents = [*latents, curve(SAMPLERS[name], distances(states, final))]
            charts = {"guess": paths, "path": latents}
            yield {
                "rows": [*rows, row],
                "charts": {kind: {"series": lines, "x": "evaluation", "low": 0} for kind, lines in charts.items()},
            }
        rows = [*rows, row]


def distances(path: list[Tensor], final: Tensor) -> list[tuple[int, float]]:
    """How far each of the latents is from the final ones, as the root of the mean square."""
    return [(index, (one - final).square().mean().sqrt().item()) for index, one in enumerate(path, start=1)]


def thumbnail(images: list[Image.Image] | None) -> str | None:
    """The first picture, small, as text; None where no preview was due."""
    if images is None:
        return None
    small = images[0].copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(small)
