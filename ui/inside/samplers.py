"""Samplers side by side: the same prompt, noise and network; only the way from noise to picture differs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, Request

from ..form.controls import Controls, Values, settings_of, steps_control
from ..form.inputs import CheckboxGroup
from ..runs.limits import prepare
from ..runs.models import ModelHolder
from ..stage.live import data_uri
from .chart import Line, chart, line
from .lane import connect_lane, lane_buttons
from .view import inside_view

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stable_diffusion.pipeline import Pipeline

MAX_STEPS = 50
THUMBNAIL = 144
TELL_EVERY = 0.3
"""Seconds from one picture of the view to the next: a browser draws the whole of it anew, for a tenth of a second."""
GUESS = "The guess x̂<sub>0</sub>: distance from the final latents (RMS)"
PATH = "The latents x<sub>t</sub>: distance from the final latents (RMS)"
LEVELS = "The noise level σ at each step, by schedule"
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
        buttons = lane_buttons("Compare", "inside-compare")
    view = inside_view("samplers")

    def run(values: Values) -> Iterator[dict[str, Any]]:
        if not values[chosen]:
            raise ValueError("samplers must name at least one, got none: choose some")
        yield from comparisons(*prepare(holder, settings_of(controls, values)), values[chosen])

    connect_lane(holder, menu, buttons, run, {*controls.values(), chosen}, view)


def comparisons(pipeline: Pipeline, request: Request, names: list[str]) -> Iterator[dict[str, Any]]:
    """What the view shows as the samplers run, one after the other: strips, and the paths of those that are done."""
    request = request.seeded()
    rows: list[dict[str, Any]] = []
    due = 0.0
    guessed: list[Line] = []
    walked: list[Line] = []
    levels = chart("levels", LEVELS, "step", noise_levels(pipeline, request), log=True)
    for name in names:
        label, frames = SAMPLER_LABELS[name], []
        guesses: list[Tensor] = []
        states: list[Tensor] = []
        for step in pipeline.stream(dataclasses.replace(request, sampler=name)):
            guesses.append(step.denoised)
            # Euler's latents grow with sigma: comparable are those of unit variance.
            states.append(step.latents / step.level.scale)
            if step.images is not None:
                frames.append({"index": step.index, "src": thumbnail(step.images[0])})
            status = f"{step.index} of {step.total}"
            if step.final is not None:
                status = f"{step.total} evaluations"
                guessed.append(line(label, distances(guesses, step.final)))
                walked.append(line(label, distances(states, step.final)))
            elif time.monotonic() < due:
                continue
            due = time.monotonic() + TELL_EVERY
            row = {"label": label, "status": status, "frames": list(frames)}
            paths = [
                chart("guess", GUESS, "evaluation", guessed, low=0),
                chart("path", PATH, "evaluation", walked, low=0),
            ]
            yield {"rows": [*rows, row], "charts": [*paths, levels]}
        rows.append(row)


def noise_levels(pipeline: Pipeline, request: Request) -> list[Line]:
    """The noise level sigma that each step of a run begins at, for every way to space them, with Euler's steps."""
    plans = {
        label: pipeline.plan(dataclasses.replace(request, sampler="euler", schedule=name))
        for name, label in {**SCHEDULE_LABELS, "model": "The model's own"}.items()
    }
    return [
        line(label, ((step, here.noise_to_signal) for step, (here, _) in enumerate(plan.steps, start=1)))
        for label, plan in plans.items()
    ]


def distances(path: list[Tensor], final: Tensor) -> list[tuple[int, float]]:
    """How far each of the latents is from the final ones, as the root of the mean square."""
    return [(index, (one - final).square().mean().sqrt().item()) for index, one in enumerate(path, start=1)]


def thumbnail(image: Image.Image) -> str | None:
    """A picture, small, as text."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(small)
