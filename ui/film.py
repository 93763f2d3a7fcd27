"""The film of a run: kept as one file, shown again, and saved as an animation and a contact strip."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .files import keep
from .live import Message
from .metadata import carried

FILMS: set[str] = set()
"""The files of all films. Gradio deletes those of this list that are a day old, and all when the server ends."""
SECONDS, LAST_FRAME = 3.0, 1.5
STRIP_FRAMES = 10


def keep_film(film: Sequence[Message]) -> str:
    """Write a film to a file, so that it takes up no memory; returns its path."""
    path = keep("film.json", json.dumps(film).encode())
    FILMS.add(path)
    return path


def read_film(path: str | None) -> list[Message]:
    """The messages of a film that was kept; ValueError where there is none any more."""
    try:
        return json.loads(Path(path or "").read_bytes())
    except OSError:
        raise ValueError("This run's film is gone: films are kept for a day. Generate it again.") from None


def pictures(film: Sequence[Message]) -> list[Image.Image]:
    """The pictures of x_0 in a film, in order; steps without a preview are left out."""
    texts = [message["x0"].split(",", 1)[1] for message in film if message["x0"]]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in texts]


def animation(frames: Sequence[Image.Image]) -> bytes:
    """An animated WebP that plays for three seconds, rests on the last picture, and begins again."""
    each = max(40, round(1000 * SECONDS / len(frames)))
    durations = [each] * (len(frames) - 1) + [round(1000 * LAST_FRAME)]
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "quality": 90}
    frames[0].save(buffer, "WEBP", **options, **carried("WEBP"))
    return buffer.getvalue()


def strip(frames: Sequence[Image.Image]) -> bytes:
    """A PNG with up to ten pictures in a row, evenly spaced over the run, the last one among them."""
    count = min(STRIP_FRAMES, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)] if count > 1 else frames
    width, height = frames[0].size
    sheet = Image.new("RGB", (width * len(chosen), height))
    for position, frame in enumerate(chosen):
        sheet.paste(frame, (position * width, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", **carried("PNG"))
    return buffer.getvalue()
