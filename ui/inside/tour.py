"""The tour through the tab Inside: ten stops, of which one is in view, on the visitor's own last picture.

One component shows all stops. The script of a stop asks a question, which takes turns with everybody's runs, and draws
the values of its view. Before a visitor has a picture, each stop draws the values of a recorded run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import gradio as gr

from stable_diffusion.request import Request, RequestError, shown

from ..form.controls import CHECKED, QUIET
from ..keep.history import FinishedRun
from ..runs.backend import Backend
from ..runs.errors import explain, without_folders
from ..runs.events import Waiting
from ..runs.message_rate import MessageRate
from ..runs.visitors import visitor_of
from ..stage.live import address
from ..stage.opening import ASSETS, EXAMPLES
from .stop import HERE, Stop, Value, source_of
from .stops import STOPS

RECORDED = ASSETS / "inside.json"
"""The values of each stop for the recorded run; ui/inside/make_recording.py writes it."""
PAUSE = 0.1
"""Seconds between two messages at least."""
LOOK_INSIDE_AT = 4
"""The stop at which "Look inside" arrives."""
BY_NAME = {stop.name: stop for stop in STOPS}


def build_tour() -> gr.HTML:
    """Build the component of the tour; `connect_tour` lets it ask."""
    gr.set_static_paths([RECORDED])
    return gr.HTML(
        value={},
        html_template=markup(STOPS),
        css_template=file_text("tour.css"),
        js_on_load="\n".join(
            [file_text("tour.js"), *(file_text(f"stops/{stop.name}.js") for stop in STOPS), "begin();"]
        ),
        apply_default_css=False,
        padding=False,
        elem_id="inside-tour",
        recorded=address(RECORDED),
        stops=[stop.title for stop in STOPS],
    )


def file_text(file: str) -> str:
    """Return the text of a file of this folder."""
    return (HERE / file).read_text(encoding="utf-8")


def markup(stops: Sequence[Stop]) -> str:
    """Return the markup of all stops inside that of the tour."""
    return file_text("tour.html").replace(
        "@stops", "\n".join(section(number, stop) for number, stop in enumerate(stops, 1))
    )


def section(number: int, stop: Stop) -> str:
    """Return the markup of a stop: its own, with title, sentence and formula, and the code that computes it."""
    source = source_of(stop.source)
    code = source.code.replace("&", "&amp;").replace("<", "&lt;").replace("{", "&#123;").replace("$", "&#36;")
    label = f"Stop {number}: {stop.title}"
    return f"""<section class="stop" data-stop="{stop.name}" data-part="{stop.part}" aria-label="{label}" hidden>
  <div class="words"><h2 tabindex="-1">{stop.title}</h2><p class="sentence">{stop.sentence}</p></div>
  {file_text(f"stops/{stop.name}.html")}
  <details><summary>Formula and code</summary><p class="formula">{stop.formula}</p>
    <p>{source.file}, line {source.line}</p><pre tabindex="0">{code}</pre></details>
</section>"""


def connect_tour(tour: gr.HTML, run: gr.State, menu: gr.Dropdown, backend: Backend, rate: MessageRate) -> None:
    """Answer the questions of the tour about the picture of `run`, or without one about the first example's."""

    async def answer(value: object, about: FinishedRun | None, model: str, visitor: gr.Request) -> AsyncIterator[Value]:
        told: Value = {"asked": number_of(value)}
        unsent: list[Value] = []
        try:
            requests, view = read_question(value, about, model)
            with rate.stream(PAUSE) as due:
                async with aclosing(backend.inspect(view, requests, visitor_of(visitor))) as shown:
                    async for one in shown:
                        if isinstance(one, Waiting):
                            yield told | {"waiting": one.text}
                            continue
                        unsent.append(one)
                        if due():
                            yield told | {"values": unsent}
                            unsent = []
            yield told | {"values": unsent, "over": True}
        except Exception as error:
            yield told | {"error": without_folders(explain(error)), "over": True}

    asked = tour.submit(answer, [tour, run, menu], tour, trigger_mode="multiple", **CHECKED)
    tour.clear(None, cancels=[asked], **QUIET)  # a newer question, or another stop


def number_of(value: object) -> int | None:
    """Return the number that the script gave its question, below 2^53; None where it is no such number."""
    number = value.get("asked") if isinstance(value, dict) else None
    return number if type(number) is int and 0 <= number < 2**53 else None


def read_question(value: object, about: FinishedRun | None, model: str) -> tuple[list[Request], Any]:
    """Return the requests and the view of a question; `RequestError` where it is none."""
    asked = value if isinstance(value, dict) else {}
    name = asked.get("stop")
    stop = BY_NAME.get(name) if isinstance(name, str) else None
    if stop is None:
        raise RequestError(f"stop must be one of {', '.join(BY_NAME)}, got {shown(name)}: load the page again")
    question = stop.question.read(asked.get("question"))
    return list(stop.requests(question, request_about(about, model))), partial(stop.view, question)


def request_about(run: FinishedRun | None, model: str) -> Request:
    """Return the request of a run's picture, of several the closest to its prompt; without a run the first example."""
    if run is None:
        prompt, seed = EXAMPLES[0]
        return Request(prompt, seed=seed, model=model)
    assert run.request.seed is not None, "a finished run has its seed"
    return run.request.with_values(num_images=1, seed=run.request.seed + (run.best or 0), preview="none")


def arriving(run: FinishedRun | None, stop: int | None) -> Value:
    """Return the message that takes the tour to a run's picture, and to a stop by its number, or where it was left."""
    message: Value = {"stop": stop, "run": None}
    if run is not None:
        picture = run.files[run.best or 0]
        message["run"] = {"link": run.link, "picture": address(picture), "prompt": run.request.prompt}
    return message
