"""The film of a run: kept as one file, shown again, and saved as a video and a contact strip."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stable_diffusion.request import Request, RequestError

from ..keep.files import NoRoom, keep, stem
from ..keep.history import FinishedRun, keep_pictures
from ..keep.marks import COMPOSITE, INFO, Mark, terms_in
from ..keep.metadata import KEY, encoded, save_options
from ..keep.video import RATE, encoded_video, has_h264
from ..runs.events import Event, tile
from .frames import SIDE, enlarged, frames, resized, spaced
from .live import Message, address

log = logging.getLogger(__name__)

FILMS: set[str] = set()
"""The files of all films. Gradio deletes a film of this list after a day, and all of them when the server ends."""
STRIP_PICTURES, MAX_STRIP = 10, 512
"""Number of pictures in a strip, and the longest side of one in pixels."""
GONE = "This run's film is gone: films are kept for a day. Generate it again."


def finish(kind: str, asked: Request, request: Request, event: Event, film: Sequence[Message]) -> FinishedRun:
    """Write the pictures of a run, its photo and its film to files.

    Raises `NoRoom` where the disk has no room for the pictures; without room for the rest, the run is kept without.

    kind: the tab that asked, "t2i" or "i2i". asked: the request with the uploaded files of photo and mask. request: the
    run's own, complete and seeded, with both as pictures. event: the run's last.
    """
    assert event.images is not None
    files = keep_pictures(request, event.images, event.index if event.stopped else None)
    photo = film_file = None
    try:
        if isinstance(request.image, Image.Image):
            photo = keep("photo.png", photo_file(request.image))
        if film:
            film_file = keep_film(film)
    except NoRoom as error:
        log.warning("a run is kept without its film: %s", error)
    request = request.with_values(image=asked.image, mask=asked.mask)
    return FinishedRun(kind, request, tuple(files), film_file, photo)


def photo_file(photo: Image.Image) -> bytes:
    """Return a photo as a PNG file, with the mark that its upload had."""
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", **(save_options("PNG", "", Mark(photo.info[INFO])) if INFO in photo.info else {}))
    return buffer.getvalue()


def keep_film(film: Sequence[Message]) -> str:
    """Write a film to a file, so that it takes up no memory, and return the path."""
    path = keep("film.json", json.dumps(film).encode())
    FILMS.add(path)
    return path


def read_film(path: str | None) -> list[Message]:
    """Return the messages of a film. Raises `RequestError` where its file was deleted, or is damaged."""
    try:
        return json.loads(Path(path or "").read_bytes())
    except (OSError, ValueError):
        raise RequestError(GONE) from None


def with_final_picture(film: Sequence[Message], run: FinishedRun) -> list[Message]:
    """Return the film with the picture's own file at its end in place of a preview, if the run has one picture."""
    if len(run.files) > 1:
        return list(film)
    return [*film[:-1], {**film[-1], "x0": address(run.files[0])}]


@dataclass(frozen=True)
class Recorded:
    """The film of a finished run as it is saved: the messages that have pictures, the final picture, settings, mark."""

    film: list[Message]
    final: Image.Image
    text: str
    mark: Mark


def recorded(run: FinishedRun) -> Recorded:
    """Read the film of a run, with its final pictures side by side, and settings and mark of the first one.

    Raises `RequestError` where film or pictures were deleted or are damaged, and where the film has no pictures.
    """
    film = [message for message in read_film(run.film) if message["xt"]]
    if not film:
        raise RequestError("This run had no previews: choose a live preview.")
    try:
        pictures = [Image.open(file) for file in run.files]
        info, mark = pictures[0].info, Mark()
        final = tile([picture.convert("RGB") for picture in pictures])
        if COMPOSITE in terms_in(info.get("xmp", b"")):
            mark = Mark(COMPOSITE, Image.open(run.photo or ""))
    except OSError:
        raise RequestError(GONE) from None
    return Recorded(film, final, info.get(KEY, ""), mark)


def save_film(run: FinishedRun) -> str:
    """Write the film of a run as an MP4, or as an animated WebP where H.264 can't be encoded; return its path.

    Raises the errors of `recorded`, and `NoRoom`.
    """
    one = recorded(run)
    moving = frames(one.film, one.final, run.request.prompt)
    if has_h264():
        return keep(f"{name_of(run)}.mp4", encoded_video(moving, SIDE, one.text, one.mark))
    (first, *others), durations = zip(*moving, strict=True)
    times = [round(1000 / RATE * duration) for duration in durations]
    options = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
    return keep(
        f"{name_of(run)}.webp", encoded(first, one.text, "WEBP", one.mark, lossless=False, quality=85, **options)
    )


def save_strip(run: FinishedRun) -> str:
    """Write up to ten pictures of a run in a row, from noise to the final one, as a PNG; return its path.

    Raises the errors of `recorded`, and `NoRoom`.
    """
    one = recorded(run)
    side, shape = min(max(one.final.size), MAX_STRIP), one.final.size
    row = [enlarged(message, side, shape) for message in spaced(one.film, STRIP_PICTURES)[:-1]]
    row.append(resized(one.final, side, shape))
    width, height = row[0].size
    sheet = Image.new("RGB", (width * len(row), height))
    for position, picture in enumerate(row):
        sheet.paste(picture, (position * width, 0))
    return keep(f"{name_of(run)}-strip.png", encoded(sheet, one.text, mark=one.mark))


def name_of(run: FinishedRun) -> str:
    """Return the name of a run's saved files, without an ending."""
    assert run.request.seed is not None, "a finished run has its seed"
    return stem(run.request.prompt, run.request.seed)
