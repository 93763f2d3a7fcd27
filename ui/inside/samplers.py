"""Samplers side by side: the same prompt, first noise and network, with different ways from noise to picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import gradio as gr

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, Request, RequestError

from ..form.controls import Controls, Values, request_of, steps_control
from ..form.inputs import CheckboxGroup
from ..runs.models import LoadedModels
from ..runs.prepare import prepare
from ..stage.live import data_uri
from .chart import Line, chart, line
from .lane import connect_lane, lane_buttons
from .view import inside_view

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stable_diffusion.pipeline import Pipeline

MAX_COMPARED_STEPS = 50
THUMBNAIL_SIDE = 144
UPDATE_EVERY = 0.3
"""Seconds between updates of the view: a browser draws the whole view again, in a tenth of a second."""
GUESS = "The guess x̂<sub>0</sub>: distance from the final latents (RMS)"
PATH = "The latents x<sub>t</sub>: distance from the final latents (RMS)"
LEVELS = "The noise level σ at each step, by schedule"
CHOSEN = ("ddpm", "ddim", "euler_a", "dpmpp_2m")
TEXT = """
A sampler asks the network for x̂<sub>0</sub> again and again, and moves from noise towards it. DDPM and the ancestral
samplers add fresh noise after each step (Algorithm 2, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)), so their
pictures differ. DDIM, Euler and their relatives follow one smooth path
(Eq. 12, [arXiv:2010.02502](https://arxiv.org/abs/2010.02502)). The differences are largest with few steps. The
last chart shows the noise levels of each schedule.
"""


class Strip(TypedDict):
    """A sampler's row of the view."""

    label: str
    status: str
    frames: list[dict[str, int | str]]


class Comparison(TypedDict):
    """The view's value."""

    rows: list[Strip]
    charts: list[str]


def samplers_side_by_side(models: LoadedModels, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a red apple, fluent 3d style", label="Prompt", scale=4, elem_id="inside-compare-prompt")
        seed = gr.Textbox("1", label="Seed", placeholder="random", scale=1, min_width=90)
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(
            models.defaults(), "inside-compare-steps", maximum=MAX_COMPARED_STEPS, value=10, scale=2, min_width=150
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

    def run(values: Values) -> Iterator[Comparison]:
        if not values[chosen]:
            raise RequestError("samplers must name at least one, got none: choose some")
        yield from comparisons(*prepare(models, request_of(controls, values)), values[chosen])

    connect_lane(models, menu, buttons, run, {*controls.values(), chosen}, view)


def comparisons(pipeline: Pipeline, request: Request, names: list[str]) -> Iterator[Comparison]:
    """Run the samplers one after the other and yield the view: strips of guesses, and the paths of finished ones."""
    request = request.seeded()
    rows: list[Strip] = []
    due = 0.0
    guess_lines: list[Line] = []
    path_lines: list[Line] = []
    levels = chart("levels", LEVELS, "step", noise_levels(pipeline, request), log=True)
    for name in names:
        row: Strip = {"label": SAMPLER_LABELS[name], "status": "", "frames": []}
        rows.append(row)
        guesses: list[Tensor] = []
        states: list[Tensor] = []
        for step in pipeline.stream(dataclasses.replace(request, sampler=name)):
            guesses.append(step.denoised)
            # Euler's latents grow with sigma; latents of unit variance can be compared.
            states.append(step.latents / step.level.scale)
            if step.images is not None:
                row["frames"].append({"index": step.index, "src": thumbnail(step.images[0])})
            row["status"] = f"{step.index} of {step.total}"
            if step.final is not None:
                row["status"] = f"{step.total} evaluations"
                guess_lines.append(line(row["label"], distances(guesses, step.final)))
                path_lines.append(line(row["label"], distances(states, step.final)))
            elif time.monotonic() < due:
                continue
            due = time.monotonic() + UPDATE_EVERY
            paths = [
                chart("guess", GUESS, "evaluation", guess_lines, low=0),
                chart("path", PATH, "evaluation", path_lines, low=0),
            ]
            # Copies: Gradio compares each value with the one before.
            yield {"rows": [{**one, "frames": list(one["frames"])} for one in rows], "charts": [*paths, levels]}


def noise_levels(pipeline: Pipeline, request: Request) -> list[Line]:
    """Return the noise level sigma at the start of each of Euler's steps, a line for each schedule."""
    plans = {
        label: pipeline.plan(dataclasses.replace(request, sampler="euler", schedule=name))
        for name, label in {**SCHEDULE_LABELS, "model": "The model's own"}.items()
    }
    return [
        line(label, ((step, here.noise_to_signal) for step, (here, _) in enumerate(plan.steps, start=1)))
        for label, plan in plans.items()
    ]


def distances(path: list[Tensor], final: Tensor) -> list[tuple[int, float]]:
    """Return the distance of each of the latents from the final ones, as the root of the mean square."""
    return [(index, (one - final).square().mean().sqrt().item()) for index, one in enumerate(path, start=1)]


def thumbnail(image: Image.Image) -> str:
    """Return a small copy of a picture as the source of an img element."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return data_uri(small)
