"""Samplers side by side: the same prompt, first noise and network, with different ways from noise to picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import gradio as gr

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, Request, RequestError

from ...form.controls import Controls, Values, request_of, run_buttons
from ...form.inputs import CheckboxGroup, Slider
from ...runs.backend import Backend
from ...runs.models import LoadedModels
from ...stage.live import data_uri
from .chart import Line, chart, line
from .lane import Look, connect_lane
from .view import Value, formula, inside_view, numbers_view

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

MAX_EVALUATIONS = 50
THUMBNAIL_SIDE = 192
UPDATE_EVERY = 0.3
"""Seconds between updates of the view: a browser draws the whole view again, in a tenth of a second."""
GUESS = "The guess x̂<sub>0</sub>: distance from the final latents (RMS)"
PATH = "The latents x<sub>t</sub>: distance from the final latents (RMS)"
LEVELS = "The noise level σ at each step, by schedule"
CHOSEN = ("ddpm", "ddim", "heun")
EVALUATIONS = 7
"""Evaluations at first: few enough for samplers to differ, and a number that Heun meets exactly."""
TEXT = "**Samplers.** Ways from noise to a picture, with equal work for the network."
FORMULA = """
A sampler asks the network for x̂<sub>0</sub> again and again, and moves from noise towards it. DDPM and the ancestral
samplers add fresh noise after each step (Algorithm 2, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)), so their
pictures differ. DDIM, Euler and their relatives follow one smooth path
(Eq. 12, [arXiv:2010.02502](https://arxiv.org/abs/2010.02502)). Heun asks twice a step, but for the last, and so takes
about half as many steps (Algorithm 1, [arXiv:2206.00364](https://arxiv.org/abs/2206.00364)). With many steps the smooth
ones agree. With few they differ most, and Heun's second question, asked where its first step ended, may lead astray.
"""


def samplers_side_by_side(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a rocket, on a blue background", label="Prompt", scale=4, elem_id="inside-compare-prompt")
        seed = gr.Textbox("1", label="Seed", placeholder="random", scale=1, min_width=90)
        evaluations = Slider(
            1,
            MAX_EVALUATIONS,
            value=EVALUATIONS,
            step=1,
            label="Evaluations of the network",
            elem_id="inside-compare-evaluations",
            scale=2,
            min_width=150,
        )
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
    chosen = CheckboxGroup(
        [(label, name) for name, label in SAMPLER_LABELS.items()],
        value=list(CHOSEN),
        label="Samplers",
        elem_id="inside-samplers-chosen",
    )
    buttons = run_buttons("Compare", "inside-compare", "inside-compare-stop")
    view = inside_view("samplers")
    numbers = numbers_view("samplers")
    formula(FORMULA)

    def look(values: Values) -> Look:
        if not values[chosen]:
            raise RequestError("samplers must name at least one, got none: choose some")
        request = request_of(controls, values).seeded()
        count = round(values[evaluations])
        return comparisons, [
            request.with_values(sampler=name, num_inference_steps=steps_for(name, count)) for name in values[chosen]
        ]

    others = {"num_inference_steps": evaluations, "samplers": chosen}
    connect_lane(models, backend, menu, buttons, look, controls | others, [view, numbers])


def steps_for(sampler: str, evaluations: int) -> int:
    """Return the most steps of a sampler that take at most so many evaluations of the network."""
    from stable_diffusion.levels import SAMPLERS

    return 1 + (evaluations - 1) // SAMPLERS[sampler].evaluations_per_step


def comparisons(
    pipeline: Pipeline, requests: Sequence[Request], show: Callable[[tuple[Value, Value]], None]
) -> Inquiry[None]:
    """Run requests that differ in their sampler one after the other.

    Shows both views as they grow: strips of guesses, and the paths of finished runs.
    """
    from stable_diffusion.inspection import next_step

    words = pipeline.condition(requests[0])
    rows: list[Value] = []
    due = 0.0
    guess_lines: list[Line] = []
    path_lines: list[Line] = []
    levels = chart("levels", LEVELS, "step", noise_levels(pipeline, requests[0]), log=True)
    for request in requests:
        assert request.sampler is not None, "a prepared request is complete"
        label, frames = SAMPLER_LABELS[request.sampler], list[Value]()
        guesses, states = list["Tensor"](), list["Tensor"]()
        run = pipeline.begin(request, conditioning=words)
        preview = run.preview()
        while run.query is not None:
            step = yield from next_step(run, preview)
            guesses.append(step.denoised)
            # Euler's latents grow with sigma; latents of unit variance can be compared.
            states.append(step.latents / step.level.scale)
            if step.images is not None:
                frames.append({"index": step.index, "src": thumbnail(step.images[0])})
            status = f"{step.index} of {step.total}"
            if step.final is not None:
                status = f"{request.num_inference_steps} steps, {step.total} evaluations"
                guess_lines.append(line(label, distances(guesses, step.final)))
                path_lines.append(line(label, distances(states, step.final)))
            elif time.monotonic() < due:
                continue
            due = time.monotonic() + UPDATE_EVERY
            row: Value = {"label": label, "status": status, "frames": list(frames)}
            paths = [
                chart("guess", GUESS, "evaluation", guess_lines, low=0),
                chart("path", PATH, "evaluation", path_lines, low=0),
            ]
            show(({"rows": [*rows, row]}, {"charts": [*paths, levels]}))
        rows.append(row)


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
