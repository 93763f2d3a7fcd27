"""The live view: a component that receives one small message a step and keeps the film in the visitor's browser.

Pictures travel inside the messages, so that previews leave no files behind. The markup is fixed and the script sets
text and pictures through the DOM, so that no value is read as HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, overload
from urllib.parse import urlencode

import gradio as gr
from PIL import Image

from stable_diffusion.request import Picture

from ..runs.cost import duration
from ..runs.events import Event, webp
from ..runs.registry import new_run_id

HERE = Path(__file__).parent
PICTURES: tuple[Literal["x0", "xt", "guided", "unguided"], ...] = ("x0", "xt", "guided", "unguided")
MAX_LIGHT_FILM = 1_500_000
"""Bytes of pictures that are sent once more with the last message of a run."""


class Message(TypedDict, total=False):
    """A message to ui/stage/live.js: the state of a run, or one of its steps.

    state: idle, waiting, step, finished, stopped, failed or sketch. The steps of a film have all of `index` to `start`.
    x0, xt, guided, unguided: the pictures of `Event` as data URIs, or an address; None where a step has none.
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
    seed: int
    left: str
    """Time left."""
    x0: str | None
    xt: str | None
    guided: str | None
    unguided: str | None
    photo: str | None
    """The photo of a run over one, as it was used, with its last message: data URI or address."""
    start: Message | None
    """Step 0, the noise, which comes with the first step."""
    frames: list[Message]
    """Other steps: all so far, or those that were not sent yet."""
    replay: bool
    opening: str
    """Address of the messages of a recorded run, for an empty stage."""


def live_view(elem_id: str, film: Path) -> gr.HTML:
    """Build the live view of one tab with its opening film.

    Components that are built inside it, in a `with` block, stand under the stage.
    """
    gr.set_static_paths([film])
    return gr.HTML(
        value={"state": "idle", "opening": address(film)},
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


def sketch(picture: bytes, prompt: str, status: str, photo: str | None) -> Message:
    """Return the message that shows a WebP file which belongs to no run, beside the photo that it was drawn from."""
    link, x0 = urlencode({"prompt": prompt}), webp_uri(picture)
    return {"run": "sketch", "state": "sketch", "link": link, "text": "", "status": status, "x0": x0, "photo": photo}


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
        "seed": event.seed,
        "left": "" if over else duration(event.seconds_left),
        "status": status if over else "",
        "x0": webp_uri(event.x_0),
        "xt": webp_uri(event.x_t),
        "guided": webp_uri(event.guided),
        "unguided": webp_uri(event.unguided),
        "start": None if event.start is None else step(run_id, event.start),
    }


def steps(run_id: str, events: Sequence[Event], photo: Picture | None = None) -> list[Message]:
    """Return the film of a run: the messages of its steps. photo: as the run used it, for a run that is over."""
    film = [step(run_id, event) for event in events]
    if isinstance(photo, Image.Image):
        film[-1]["photo"] = data_uri(photo)
    return film


def so_far(run_id: str, film: Sequence[Message], link: str) -> Message:
    """Return the message that shows a run from its beginning on: for a new page, or before its first step."""
    return {**film[-1], "link": link, "frames": list(film)} if film else waiting(run_id, "", link)


def newest(unsent: Sequence[Message]) -> Message:
    """Return the message of the last of these steps, which brings those before it that were not sent yet."""
    return {**unsent[-1], "frames": list(unsent[:-1])}


def replay(film: Sequence[Message], link: str) -> Message:
    """Return the message that shows a finished run again."""
    return {**so_far("", film, link), "run": new_run_id(), "replay": True}


def last(film: Sequence[Message], link: str) -> Message:
    """Return the last message of a run, with its link, and with the whole film unless that is heavy.

    A page that is slower than the run skips steps; the film fills the gaps.
    """
    size = sum(len(frame[name] or "") for frame in film for name in PICTURES)
    return so_far("", film, link) if size <= MAX_LIGHT_FILM * 4 / 3 else {**film[-1], "link": link}


def address(path: str | Path) -> str:
    """Return the address of a file that Gradio serves, relative to the page."""
    return f"gradio_api/file={Path(path).as_posix()}"


def data_uri(image: Image.Image) -> str:
    """Return a picture as the source of an img element."""
    return webp_uri(webp(image))


@overload
def webp_uri(content: bytes) -> str: ...
@overload
def webp_uri(content: None) -> None: ...
def webp_uri(content: bytes | None) -> str | None:
    """Return a WebP file as the source of an img element; None for none."""
    if content is None:
        return None
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")
