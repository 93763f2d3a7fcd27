"""The live view: a component that receives one small message a step and keeps the film in the visitor's browser.

Pictures travel inside the message, so that previews leave no files behind. The markup is fixed and the script sets
text and pictures through the DOM: no value is ever read as HTML.
"""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from PIL import Image

from ui.stage import opening

from ..runs.events import Event, webp
from ..runs.pace import duration

HERE = Path(__file__).parent
MAX_LIGHT_FILM = 2_000_000

Message = dict[str, Any]
"""What the live view is sent: `state`, which `run`, and what ui/stage/live.js draws of it."""


def live_view(elem_id: str, *, film: bool) -> gr.HTML:
    """The live view of one tab, where nothing was drawn yet: empty, or with the opening film.

    What is built inside it, `with` it, stands under the stage.
    """
    nothing = idle()
    if film:
        gr.set_static_paths([opening.FILM, opening.STILL])
        nothing["opening"] = {"film": address(opening.FILM), "still": address(opening.STILL)}
    return gr.HTML(
        value=nothing,
        html_template=(HERE / "live.html").read_text(encoding="utf-8"),
        css_template=(HERE / "live.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "live.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        padding=False,
        elem_id=elem_id,
        label="Live view",
    )


def idle() -> Message:
    """The message that there is nothing to see yet."""
    return {"state": "idle"}


def waiting(run_id: str, text: str, link: str = "") -> Message:
    """The message that a run is about to begin or to go on, what it waits for, and its link where that is known."""
    return {"run": run_id, "state": "waiting", "text": text, "link": link}


def so_far(run_id: str, film: Sequence[Message], link: str) -> Message:
    """The message that begins a run, or goes on with one whose page is new."""
    return {**film[-1], "link": link, "frames": list(film)} if film else waiting(run_id, "", link)


def failed(run_id: str, text: str) -> Message:
    """The message that a run could not be made."""
    return {"run": run_id, "state": "failed", "text": text}


def sketch(picture: bytes, prompt: str, text: str) -> Message:
    """The message that shows a WebP file which is no run's, with a text to read beside it."""
    link = urlencode({"prompt": prompt})
    return {"run": "sketch", "state": "sketch", "link": link, "text": "", "told": text, "x0": as_uri(picture)}


def new_run() -> str:
    """A name for a run; the live view begins a new film when it changes."""
    return uuid.uuid4().hex


def replay(film: Sequence[Message], link: str) -> Message:
    """The message that shows a run again that is over."""
    return {**film[-1], "run": new_run(), "link": link, "frames": list(film), "replay": True}


def last(film: Sequence[Message], link: str) -> Message:
    """The last message of a run, with its link, and with the whole film where that is light.

    A page that is slower than the run may have skipped steps; this fills the gaps.
    """
    light = sum(len(frame["x0"] or "") + len(frame["xt"] or "") for frame in film) <= MAX_LIGHT_FILM
    return {**film[-1], "link": link, **({"frames": list(film)} if light else {})}


def message(run_id: str, event: Event) -> Message:
    """The message of one step."""
    over = event.images is not None
    state = "step" if not over else "stopped" if event.stopped else "finished"
    told = f"Stopped at step {event.index} of {event.total}." if event.stopped else f"Finished in {event.total} steps."
    return {
        "run": run_id,
        "state": state,
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
        "told": told if over else "",
        "x0": as_uri(event.x_0),
        "xt": as_uri(event.x_t),
        "start": None if event.start is None else message(run_id, event.start),
    }


def with_file(film: Sequence[Message], path: str) -> list[Message]:
    """A film that ends with the file at that path, in place of the preview of the same picture."""
    return [*film[:-1], {**film[-1], "x0": address(path)}]


def address(path: str | Path) -> str:
    """Where the page finds a file that Gradio serves."""
    return f"gradio_api/file={Path(path).as_posix()}"


def data_uri(image: Image.Image | None) -> str | None:
    """A picture as text, for an img element."""
    return None if image is None else as_uri(webp(image))


def as_uri(picture: bytes | None) -> str | None:
    """A WebP file as text, for an img element."""
    return None if picture is None else "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")
