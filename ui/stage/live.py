"""The live view: a component that receives one small message a step and keeps the film in the visitor's browser.

Pictures travel inside the messages, so that previews leave no files behind. The markup is fixed and the script sets
text and pictures through the DOM, so that no value is read as HTML.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlencode

import gradio as gr
from PIL import Image

from ..runs.cost import duration
from ..runs.events import Event, webp
from ..runs.registry import new_run_id
from . import opening

HERE = Path(__file__).parent
MAX_LIGHT_FILM = 1_500_000
"""Bytes of pictures that are sent once more with the last message of a run."""


class Message(TypedDict, total=False):
    """A message to ui/stage/live.js: the state of a run, or one of its steps.

    state: idle, waiting, step, finished, stopped, failed or sketch. The steps of a film have all of `index` to `start`.
    x0, xt: pictures as data URIs, or an address; None where a step has no preview.
    """

    run: str
    state: str
    text: str
    """Text on the empty stage."""
    status: str
    """Status line below the stage, which a screen reader reads aloud."""
    link: str
    index: int
    total: int
    facts: dict[str, str | int | float]
    pace: dict[str, str]
    x0: str | None
    xt: str | None
    start: Message | None
    """Step 0, the noise, which comes with the first step."""
    frames: list[Message]
    """All steps so far."""
    replay: bool
    opening: dict[str, str]


def live_view(elem_id: str, *, film: bool) -> gr.HTML:
    """Build the live view of one tab, empty or with the opening film.

    Components that are built inside it, in a `with` block, stand under the stage.
    """
    empty = idle()
    if film:
        gr.set_static_paths([opening.FILM, opening.STILL])
        empty["opening"] = {"film": address(opening.FILM), "still": address(opening.STILL)}
    return gr.HTML(
        value=empty,
        html_template=(HERE / "live.html").read_text(encoding="utf-8"),
        css_template=(HERE / "live.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "live.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        padding=False,
        elem_id=elem_id,
        label="Live view",
    )


def idle() -> Message:
    """Return the message of an empty stage."""
    return {"state": "idle"}


def waiting(run_id: str, text: str, link: str = "") -> Message:
    """Return the message of a run without steps: what it waits for, and its link once that is known."""
    return {"run": run_id, "state": "waiting", "text": text, "link": link}


def failed(run_id: str, text: str) -> Message:
    """Return the message of a run that ended with an error."""
    return {"run": run_id, "state": "failed", "text": text}


def sketch(picture: bytes, prompt: str, status: str) -> Message:
    """Return the message that shows a WebP file which belongs to no run."""
    link = urlencode({"prompt": prompt})
    return {"run": "sketch", "state": "sketch", "link": link, "text": "", "status": status, "x0": webp_uri(picture)}


def step(run_id: str, event: Event) -> Message:
    """Return the message of one step."""
    over = event.images is not None
    status = f"Finished in {event.total} steps."
    if event.stopped:
        status = f"Stopped at step {event.index} of {event.total}."
    return {
        "run": run_id,
        "state": "step" if not over else "stopped" if event.stopped else "finished",
        "index": event.index,
        "total": event.total,
        "facts": {
            "step": f"{event.index} of {event.total}",
            "timestep": round(event.timestep),
            "sigma": "∞" if math.isinf(event.sigma) else round(event.sigma, 3),
            "seed": event.seed,
        },
        "pace": {
            "seconds": duration(event.seconds_per_step),
            "left": "" if over else duration(event.seconds_left),
        },
        "status": status if over else "",
        "x0": None if event.x_0 is None else webp_uri(event.x_0),
        "xt": None if event.x_t is None else webp_uri(event.x_t),
        "start": None if event.start is None else step(run_id, event.start),
    }


def steps(run_id: str, events: Sequence[Event]) -> list[Message]:
    """Return the film of a run: the messages of its steps."""
    return [step(run_id, event) for event in events]


def so_far(run_id: str, film: Sequence[Message], link: str) -> Message:
    """Return the message that shows a run from its beginning on: for a new page, or before its first step."""
    return {**film[-1], "link": link, "frames": list(film)} if film else waiting(run_id, "", link)


def replay(film: Sequence[Message], link: str) -> Message:
    """Return the message that shows a finished run again."""
    return {**film[-1], "run": new_run_id(), "link": link, "frames": list(film), "replay": True}


def last(film: Sequence[Message], link: str) -> Message:
    """Return the last message of a run, with its link, and with the whole film unless that is heavy.

    A page that is slower than the run skips steps; the film fills the gaps.
    """
    size = sum(len(frame["x0"] or "") + len(frame["xt"] or "") for frame in film)
    return so_far("", film, link) if size <= MAX_LIGHT_FILM * 4 / 3 else {**film[-1], "link": link}


def address(path: str | Path) -> str:
    """Return the address of a file that Gradio serves, relative to the page."""
    return f"gradio_api/file={Path(path).as_posix()}"


def data_uri(image: Image.Image) -> str:
    """Return a picture as the source of an img element."""
    return webp_uri(webp(image))


def webp_uri(content: bytes) -> str:
    """Return a WebP file as the source of an img element."""
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")
