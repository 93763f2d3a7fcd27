"""The film of a run: kept as one file, shown again, and saved as an animation and a contact strip."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stable_diffusion.request import Request, RequestError

from ..keep.files import NoRoom, keep, stem
from ..keep.history import FinishedRun, keep_pictures
from ..keep.marks import COMPOSITE, INFO, Mark, terms_in
from ..keep.metadata import KEY, encoded, save_options
from ..runs.events import Event
from .live import Message, address

log = logging.getLogger(__name__)

FILMS: set[str] = set()
"""The files of all films. Gradio deletes a film of this list after a day, and all of them when the server ends."""
PLAY_SECONDS, REST_SECONDS, MAX_FRAMES = 3.0, 1.5, 40
STRIP_FRAMES = 10
GONE = "This run's film is gone: films are kept for a day. Generate it again."
FRAME_SIDE = 512
"""Side of an animation's pictures, in pixels, or the largest whole multiple of their own side below it."""
FONT_SIZE, MARGIN, BAR = 17, 12, 40
PAPER, INK, FAINT = "#1c1917", "#fafaf9", "#d6d3d1"


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


def film_files(run: FinishedRun) -> list[str]:
    """Write animation and contact strip of a run, with settings and mark of its first picture, and return the paths.

    Raises `RequestError` where film or picture were deleted or are damaged, and where the film has no pictures.
    """
    film = [message for message in read_film(run.film) if message["x0"]]
    if not film:
        raise RequestError("This run had no previews: choose a live preview.")
    assert run.request.seed is not None, "a finished run has its seed"
    try:
        with Image.open(run.files[0]) as image:
            text, mark = image.info.get(KEY, ""), Mark()
            if COMPOSITE in terms_in(image.info.get("xmp", b"")):
                mark = Mark(COMPOSITE, Image.open(run.photo or ""))
    except OSError:
        raise RequestError(GONE) from None
    name = stem(run.request.prompt, run.request.seed)
    moving = animation(film, run.request.prompt, text, mark)
    return [keep(f"{name}.webp", moving), keep(f"{name}-strip.png", strip(film, text, mark))]


def picture_of(source: str | None) -> Image.Image:
    """Decode a picture from a data URI."""
    assert source is not None, "a step without previews has no picture"
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")


def evenly(film: Sequence[Message], count: int) -> list[Message]:
    """Return at most `count` messages at even distances, the first and the last among them."""
    last = len(film) - 1
    return [film[round(i * last / max(1, count - 1))] for i in range(count)] if len(film) > count else list(film)


def animation(film: Sequence[Message], prompt: str, text: str = "", mark: Mark | None = None) -> bytes:
    """Return an animated WebP that begins with noise, plays for three seconds and rests on the last picture, in a loop.

    A line moves from right to left: left of it is x_t, right of it the network's x_0. text, mark: see `encoded`.
    """
    film = evenly(film, MAX_FRAMES)
    first, total = film[0], film[0]["total"]
    noise = enlarged(picture_of(first["xt"] or first["x0"]))
    room = noise.width - 3 * MARGIN - font().getlength(f"step {total} of {total}")
    caption = shortened(printable(prompt), room)
    frames = [captioned(noise, caption, f"step 0 of {total}")]
    steps = [message for message in film if message["index"] > 0]
    for i, message in enumerate(steps, start=1):
        picture = enlarged(picture_of(message["x0"]))
        if message["xt"]:
            cover_left(picture, enlarged(picture_of(message["xt"])), 1 - i / len(steps))
        frames.append(captioned(picture, caption, f"step {message['index']} of {total}"))
    durations = [round(1000 * PLAY_SECONDS / len(steps))] * len(steps) + [round(1000 * REST_SECONDS)]
    options = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    return encoded(frames[0], text, "WEBP", mark, lossless=False, quality=85, **options)


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture at the size of an animation: every pixel a square, or reduced where it is larger."""
    times = FRAME_SIDE // max(picture.size)
    if times == 0:
        picture.thumbnail((FRAME_SIDE, FRAME_SIDE))
        return picture
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def cover_left(picture: Image.Image, noise: Image.Image, share: float) -> None:
    """Draw noise of the same size over the left share, 0 to 1, of a picture."""
    picture.paste(noise.crop((0, 0, round(share * picture.width), picture.height)))


def captioned(picture: Image.Image, prompt: str, step: str) -> Image.Image:
    """Return a picture with a line of text below: the prompt to the left, the step to the right."""
    width, height = picture.size
    sheet = Image.new("RGB", (width, height + BAR), PAPER)
    sheet.paste(picture)
    draw, middle = ImageDraw.Draw(sheet), height + BAR // 2
    draw.text((MARGIN, middle), prompt, INK, font(), anchor="lm")
    draw.text((width - MARGIN, middle), step, FAINT, font(), anchor="rm")
    return sheet


@lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow (Aileron, CC0)."""
    return ImageFont.load_default(FONT_SIZE)


def printable(text: str) -> str:
    """Return a text in one line, without accents, and with a question mark for signs that the font lacks."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    signs = (sign if has_glyph(sign) else "?" for sign in plain if not unicodedata.combining(sign))
    return re.sub(r"\?{2,}", "?", "".join(signs))


@lru_cache(maxsize=1000)
def has_glyph(sign: str) -> bool:
    """Return whether the font has a letter; it draws all missing ones alike."""
    return bytes(font().getmask(sign)) != bytes(font().getmask("\uffff"))


def shortened(text: str, room: float) -> str:
    """Return a text cut, with an ellipsis, to at most `room` pixels of width."""
    if len(text) <= room and font().getlength(text) <= room:
        return text
    text = text[: max(0, int(room))]  # no letter is less than a pixel wide
    while text and font().getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return text + "…"


def strip(film: Sequence[Message], text: str = "", mark: Mark | None = None) -> bytes:
    """Return a PNG with up to ten pictures of the run in a row, at even distances, the last one among them."""
    pictures = [picture_of(message["x0"]) for message in evenly(film, STRIP_FRAMES)]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for position, picture in enumerate(pictures):
        sheet.paste(picture, (position * width, 0))
    return encoded(sheet, text, mark=mark)
