"""Memory or model: the pictures of two seeds, and the training drawings nearest to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from stable_diffusion.request import Request, RequestError

from ...form.controls import Controls, Values, request_of, run_buttons, steps_control
from ...runs.backend import Backend
from ...runs.models import LoadedModels
from ...stage.live import data_uri
from .lane import Look, connect_lane
from .view import Value, formula, inside_view

if TYPE_CHECKING:
    from PIL import Image

    from stable_diffusion.inspect.neighbours import Drawings, Neighbour
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

FOLDER = "drawings"
"""The folder of a model's training drawings, in its directory."""
TEXT = "**Memory or model?** Two seeds, and beside each picture the training drawings nearest to it."
FORMULA = """
The distance of two pictures a and b is the root of the mean of (a − b)², over red, green and blue of 16 x 16 blocks: 0
for equal pictures, 1 from black to white. An even background counts as white, and a drawing may lie mirrored. So it
sees shapes and colours as a glance does. *Near* means nearer than 19 of 20 pairs of training drawings taken at random.

Compared with 7,053 of the 12,655 drawings: one for each thing and style, without people, second skin tones and all that
training never saw. Training also recoloured, moved and combined drawings: those are not found here.

Drawings, made small: Fluent Emoji by Microsoft (MIT), Noto Emoji by Google (Apache 2.0), Twemoji by Twitter and
contributors, EmojiTwo by Ranks.com and its community, Streamline Emojis by Webalys (the last three CC BY 4.0);
`NOTICE.md` beside the model tells more.
"""


def memory_or_model(models: LoadedModels, backend: Backend, menu: gr.Dropdown) -> None:
    """Build the section and connect its events."""
    gr.Markdown(TEXT)
    with gr.Row(equal_height=True, elem_classes="inside-controls"):
        prompt = gr.Textbox("a rocket", label="Prompt", scale=4, elem_id="inside-memory-prompt")
        seed = gr.Textbox("1", label="Seed", placeholder="random", scale=1, min_width=90)
        other = gr.Textbox("2", label="Other", placeholder="random", scale=1, min_width=90)
        controls: Controls = {"model": menu, "prompt": prompt, "seed": seed}
        controls |= steps_control(models.defaults(), "inside-memory-steps", scale=2, min_width=150)
    buttons = run_buttons("Compare", "inside-remember", "inside-remember-stop")
    view = inside_view("memory")
    formula(FORMULA)

    def look(values: Values) -> Look:
        seeds = (values, {**values, seed: values[other]})
        return memories, [request_of(controls, one).seeded() for one in seeds]

    connect_lane(models, backend, menu, buttons, look, controls | {"other": other}, view)


def memories(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[Value], None]) -> Inquiry[None]:
    """Run two requests that differ in their seed, and show the drawings nearest to each picture.

    Raises `RequestError` for a model that brings no drawings.
    """
    folder = Path(pipeline.models.source) / FOLDER
    if not folder.is_dir():
        raise RequestError(
            f"model must bring its training drawings, and {pipeline.models.name} has none: choose the included model"
        )
    # The drawings are read here, and not in the engine's turns.
    return compared(pipeline, requests, drawings_of(folder), show)


@lru_cache(maxsize=1)
def drawings_of(folder: Path) -> Drawings:
    """Return the drawings of a directory, which are kept for the next run."""
    from stable_diffusion.inspect.neighbours import Drawings

    return Drawings.load(folder)


def compared(
    pipeline: Pipeline, requests: Sequence[Request], drawings: Drawings, show: Callable[[Value], None]
) -> Inquiry[None]:
    """Run requests as `memories` does, and compare their pictures with `drawings`."""
    from stable_diffusion.inspect.neighbours import distance
    from stable_diffusion.inspection import next_step

    rows: list[Value] = []
    pictures: list[Image.Image] = []
    nearest: list[list[Neighbour]] = []
    for request in requests:
        run = pipeline.begin(request)
        preview = run.preview()
        while run.query is not None:
            step = yield from next_step(run, preview)
            if step.images is None:
                continue
            [picture] = step.images
            row: Value = {"seed": step.seed, "status": f"step {step.index} of {step.total}", "src": data_uri(picture)}
            if step.final is not None:
                pictures.append(picture)
                nearest.append(drawings.nearest(picture))
                row = {**row, "status": "and its nearest drawings", "near": [*map(shown, nearest[-1])]}
            show({"rows": [*rows, row]})
        rows.append(row)
    apart = distance(*pictures)
    first, second = (near[0] for near in nearest)
    near, chance = drawings.by_chance
    bars = {
        "First picture and its nearest drawing": first.distance,
        "Second picture and its nearest drawing": second.distance,
        "The two pictures": apart,
        "Two drawings taken at random": chance,
    }
    longest = max(bars.values())
    lines = [
        {"label": label, "text": f"{value:.2f}", "share": round(75 * value / longest)} for label, value in bars.items()
    ]
    show({"rows": rows, "bars": lines, "meaning": meaning(first, second, apart, near)})


def shown(one: Neighbour) -> Value:
    """Return a drawing as the template shows it."""
    return {"src": data_uri(one.image), "name": one.name, "style": one.style, "distance": f"{one.distance:.2f}"}


def meaning(first: Neighbour, second: Neighbour, apart: float, near: float) -> str:
    """Return a sentence about two pictures: their nearest drawings, and their distance `apart` from each other.

    near: the distance below which two pictures are alike.
    """
    if max(first.distance, second.distance) > near:
        if min(first.distance, second.distance) > near:
            return "Neither picture is near to one of these drawings: it put together something that it was not shown."
        return "One picture is near to a training drawing, and the other to none: the seed decides."
    if (first.name, first.style) == (second.name, second.style):
        alike = "The pictures are alike because it remembers" if apart <= near else "It remembers"
        return f"{alike}: both redraw one training drawing, the {first.name} in {first.style}, not quite exactly."
    if first.name == second.name:
        return f"It remembers more than one {first.name}: each seed redraws another training drawing."
    return f"The seed decides: one picture redraws the {first.name}, the other the {second.name}."
