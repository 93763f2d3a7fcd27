"""The film of a run: kept as one file, shown again, and saved as an animation and a contact strip."""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stable_diffusion.request import Request

from ..keep.files import keep, stem
from ..keep.metadata import KEY, carried
from .live import Message

FILMS: set[str] = set()
"""The files of all films. Gradio deletes those of this list that are a day old, and all when the server ends."""
SECONDS, LAST_FRAME, MAX_FRAMES = 3.0, 1.5, 40
STRIP_FRAMES = 10
SIDE = 512
"""How large the pictures of an animation are, in pixels, or as near to that as a whole multiple of them comes."""
LETTERS, MARGIN, BAR = 17, 12, 40
PAPER, INK, FAINT = "#1c1917", "#fafaf9", "#d6d3d1"


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


def save(path: str | None, request: Request, picture: str) -> list[str]:
    """The files of the animation and the strip of a run that is over: its kept film, and one of its pictures.

    Both carry that picture's settings. Raises ValueError where the film is gone, or has no pictures.
    """
    film = [message for message in read_film(path) if message["x0"]]
    if not film:
        raise ValueError("This run had no previews: choose a live preview.")
    assert request.seed is not None, "a run that is over has its seed"
    with Image.open(picture) as image:
        text = image.info.get(KEY, "")
    name = stem(request.prompt, request.seed)
    moving = animation(film, request.prompt, text)
    return [keep(f"{name}.webp", moving), keep(f"{name}-strip.png", strip(film, text))]


def opened(text: str) -> Image.Image:
    """The picture in a message."""
    return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[1]))).convert("RGB")


def spread(film: Sequence[Message], count: int) -> list[Message]:
    """At most `count` of the messages, evenly spaced, the first and the last among them."""
    last = len(film) - 1
    return [film[round(i * last / max(1, count - 1))] for i in range(count)] if len(film) > count else list(film)


def animation(film: Sequence[Message], prompt: str, text: str = "") -> bytes:
    """An animated WebP that begins with noise, plays for three seconds, rests on the last picture, and begins again.

    Left of a line that moves to the left is x_t, right of it the network's guess of x_0.
    """
    film = spread(film, MAX_FRAMES)
    first, total = film[0], film[0]["total"]
    noise = enlarged(opened(first["xt"] or first["x0"]))
    room = noise.width - 3 * MARGIN - letters().getlength(f"step {total} of {total}")
    told = cut(legible(prompt), room)
    frames = [captioned(noise, told, f"step 0 of {total}")]
    steps = [message for message in film if message["index"] > 0]
    for i, message in enumerate(steps, start=1):
        picture = enlarged(opened(message["x0"]))
        if message["xt"]:
            draw_curtain(picture, enlarged(opened(message["xt"])), 1 - i / len(steps))
        frames.append(captioned(picture, told, f"step {message['index']} of {total}"))
    durations = [round(1000 * SECONDS / len(steps))] * len(steps) + [round(1000 * LAST_FRAME)]
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "quality": 85}
    frames[0].save(buffer, "WEBP", **options, **carried("WEBP", text))
    return buffer.getvalue()


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture as large as it is in an animation: every pixel a square, or reduced where it has too many."""
    times = SIDE // max(picture.size)
    if times == 0:
        picture.thumbnail((SIDE, SIDE))
        return picture
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def draw_curtain(picture: Image.Image, noise: Image.Image, share: float) -> None:
    """Cover that share of a picture with noise of the same size, from the left."""
    picture.paste(noise.crop((0, 0, round(share * picture.width), picture.height)))


def captioned(picture: Image.Image, prompt: str, step: str) -> Image.Image:
    """A picture with a line of text below: the prompt to the left, the step to the right."""
    width, height = picture.size
    sheet = Image.new("RGB", (width, height + BAR), PAPER)
    sheet.paste(picture)
    draw, font, middle = ImageDraw.Draw(sheet), letters(), height + BAR // 2
    draw.text((MARGIN, middle), prompt, INK, font, anchor="lm")
    draw.text((width - MARGIN, middle), step, FAINT, font, anchor="rm")
    return sheet


@lru_cache(maxsize=1)
def letters() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings along; it may be passed on. (Aileron, CC0)"""
    return ImageFont.load_default(LETTERS)


def legible(text: str) -> str:
    """A text in one line, without accents, and with a question mark for what else the font has no letters for."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    signs = (sign if drawable(sign) else "?" for sign in plain if not unicodedata.combining(sign))
    return re.sub(r"\?{2,}", "?", "".join(signs))


@lru_cache(maxsize=1000)
def drawable(sign: str) -> bool:
    """Whether the font has this letter: all others look like one that nobody has."""
    return bytes(letters().getmask(sign)) != bytes(letters().getmask("\uffff"))


def cut(text: str, room: float) -> str:
    """As much of a text as is at most `room` pixels wide, with an ellipsis where it is not all of it."""
    font = letters()
    if len(text) <= room and font.getlength(text) <= room:
        return text
    text = text[: max(0, int(room))]  # no letter is less than a pixel wide
    while text and font.getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return text + "…"


def strip(film: Sequence[Message], text: str = "") -> bytes:
    """A PNG with up to ten pictures in a row, evenly spaced over the run, the last one among them."""
    chosen = [opened(message["x0"]) for message in spread(film, STRIP_FRAMES)]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width * len(chosen), height))
    for position, frame in enumerate(chosen):
        sheet.paste(frame, (position * width, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", **carried("PNG", text))
    return buffer.getvalue()
