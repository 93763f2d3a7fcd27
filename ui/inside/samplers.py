"""Samplers side by side: the same prompt, noise and network; only the way from noise to picture differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, Request

from ..controls import Controls, Values, settings_of, steps_control
from ..inputs import CheckboxGroup
from ..limits import prepare
from ..live import data_uri
from ..models import ModelHolder
from .lane import connect_lane
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
(Eq. 12, [arXiv:2010.02502](https://arxiv.org/abs/2010.02502)). Few steps show best who arrives early. At which noise
levels a walk stops is its schedule: all that can be chosen are drawn last.
"""


def samplers_side_by_side(holder: ModelHolder, menu: gr.Dropdown) -> None:
    """Build the section and make it work."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a red apple, fluent 3d style", label="Prompt", scale=4, elem_id="inside-compare-prompt")
        seed = gr.Textbox("1", label="Seed", placeholder="random", scale=1, min_width=90)
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(
            holder.defaults, "inside-compare-steps", maximum=MAX_STEPS, value=10, scale=2, min_width=150
        )
    chosen = CheckboxGroup(
        [(label, name) for name, label in SAMPLER_LABELS.items()],
        value=list(CHOSEN),
        label="Samplers",
        elem_id="inside-samplers-chosen",
    )
    with gr.Row(elem_classes="run-row"):
        compare = gr.Button("Compare", variant="primary", elem_id="inside-compare", scale=3)
        stop = gr.Button("Stop", elem_id="inside-compare-stop", scale=1, min_width=90)
    view = inside_view("samplers")

    def run(values: Values) -> Iterator[dict[str, Any]]:
        if not values[chosen]:
            raise ValueError("samplers must name at least one, got none: choose some")
        yield from comparisons(*prepare(holder, settings_of(controls, values)), values[chosen])

    connect_lane(holder, menu, (compare, stop), run, {*controls.values(), chosen}, view)


def comparisons(pipeline: Pipeline, request: Request, names: list[str]) -> Iterator[dict[str, Any]]:
    """What the view shows as the samplers run, one after the other: strips, and the paths of those that are done."""
    request = request.seeded()
    rows: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    latents: list[dict[str, Any]] = []
    levels = {"series": noise_levels(pipeline, request), "x": "step", "log": True}
    for name in names:
        row: dict[str, Any] = {"label": SAMPLER_LABELS[name], "frames": []}
        guesses: list[Tensor] = []
        states: list[Tensor] = []
        for step in pipeline.stream(dataclasses.replace(request, sampler=name)):
            guesses.append(step.denoised)
            # Euler's latents grow with sigma: comparable are those of unit variance.
            states.append(step.latents / step.level.scale)
            frame = {"index": step.index, "total": step.total, "src": thumbnail(step.images)}
            row = {**row, "frames": [*row["frames"], frame]}
            if step.final is not None:
                paths = [*paths, curve(SAMPLER_LABELS[name], distances(guesses, step.final))]
                latents = [*latents, curve(SAMPLER_LABELS[name], distances(states, step.final))]
            charts = {"guess": paths, "path": latents}
            drawn = {kind: {"series": lines, "x": "evaluation", "low": 0} for kind, lines in charts.items()}
            yield {"rows": [*rows, row], "charts": {**drawn, "levels": levels}}
        rows = [*rows, row]


def noise_levels(pipeline: Pipeline, request: Request) -> list[dict[str, Any]]:
    """The noise level sigma that each step of a run begins at, for every way to space them, with Euler's steps."""
    plans = {
        label: pipeline.plan(dataclasses.replace(request, sampler="euler", schedule=name))
        for name, label in {**SCHEDULE_LABELS, "model": "The model's own"}.items()
    }
    return [
        curve(label, ((step, here.noise_to_signal) for step, (here, _) in enumerate(plan.steps, start=1)))
        for label, plan in plans.items()
    ]


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
