"""The frames of a saved film: the picture as it comes, the noise in a corner, prompt and step below."""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..keep.video import RATE
from .live import Message
from .opening import ASSETS

Frame = tuple[Image.Image, int]
"""A picture, and its duration in frames of 1/30 s."""
NOISE, HELD, BRIEF, REST = (round(RATE * seconds) for seconds in (0.8, 0.3, 1 / 15, 2.0))
"""Durations of the noise, of the first steps, in which the most happens, of the others, and of the final picture."""
FIRST, MAX_STEPS = 5, 40
SIDE, MARGIN, TOP, INSET, EDGE = 720, 40, 16, 160, 3
BOX = SIDE - 2 * MARGIN
"""Side of the square in a frame that the picture fills, in pixels."""
FONT_SIZE = 23
PAPER, INK, FAINT, ACCENT, TRACK = "#1c1917", "#fafaf9", "#d6d3d1", "#2dd4bf", "#44403c"
FONT = ASSETS / "fonts" / "DejaVuSans.ttf"


def frames(film: Sequence[Message], final: Image.Image, prompt: str) -> Iterator[Frame]:
    """Yield the frames of a film: the noise, the steps with the noise that the network gets, and the final picture.

    film: the messages that have pictures. A film of many steps shows some of them, at equal distances of change.
    """
    first, steps = film[0], spaced([message for message in film if message["index"] > 0], MAX_STEPS)
    total, shape = first["total"], final.size
    caption = shortened(printable(prompt), BOX - MARGIN - font().getlength(f"step {total} of {total}"))

    def frame(picture: Image.Image, step: int) -> Image.Image:
        return framed(picture, caption, f"step {step} of {total}", step / total)

    yield frame(enlarged({**first, "index": 0}, BOX, shape), 0), NOISE
    for place, message in enumerate(steps[:-1], start=1):
        picture = enlarged(message, BOX, shape)
        put_in_corner(picture, picture_of(message["xt"]))
        yield frame(picture, message["index"]), HELD if place <= FIRST else BRIEF
    yield frame(resized(final, BOX, shape), steps[-1]["index"]), REST


def spaced(film: Sequence[Message], count: int) -> list[Message]:
    """Return at most `count` messages at equal distances of change, the first and the last among them.

    As on the stage (`space` in ui/stage/live.js): where little changes, at equal numbers of steps.
    """
    if len(film) <= count:
        return list(film)
    small = np.array([picture_of(message["x0"]).resize((16, 16)) for message in film], dtype=float)
    changes = np.abs(np.diff(small, axis=0)).sum(axis=(1, 2, 3))
    way = np.concatenate([[0.0], np.cumsum(changes + changes.mean() / 2 + 1e-6)])
    return [film[place] for place in np.unique(np.searchsorted(way, np.linspace(0.0, way[-1], count)))]


def picture_of(source: str | None) -> Image.Image:
    """Decode a picture from a data URI."""
    assert source is not None, "a step without previews has no picture"
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")


def enlarged(message: Message, side: int, shape: tuple[int, int]) -> Image.Image:
    """Return what the network sees at a step, in a shape; at step 0 the noise, each of its pixels a square."""
    if message["index"] == 0:
        return resized(picture_of(message["xt"]), side, shape, Image.Resampling.NEAREST)
    return resized(picture_of(message["x0"]), side, shape)


def resized(
    picture: Image.Image,
    side: int,
    shape: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Return a picture in a shape, width to height, whose longer side is `side` pixels."""
    width, height = (max(1, round(side * one / max(shape))) for one in shape)
    return picture.resize((width, height), resampling)


def put_in_corner(picture: Image.Image, noise: Image.Image) -> None:
    """Draw noise in the lower left corner of a picture, each of its pixels a square."""
    small = resized(noise, INSET, picture.size, Image.Resampling.NEAREST)
    corner = Image.new("RGB", (small.width + EDGE, small.height + EDGE), PAPER)
    corner.paste(small, (0, EDGE))
    picture.paste(corner, (0, picture.height - corner.height))


def framed(picture: Image.Image, prompt: str, step: str, share: float) -> Image.Image:
    """Return a square with a picture, a bar that is full to a share from 0 to 1, prompt and step."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    sheet.paste(picture, ((SIDE - picture.width) // 2, TOP + (BOX - picture.height) // 2))
    draw, bar, middle = ImageDraw.Draw(sheet), TOP + BOX + 6, (TOP + BOX + 10 + SIDE) // 2
    for end, colour in ((1.0, TRACK), (share, ACCENT)):
        draw.rectangle((MARGIN, bar, MARGIN + end * BOX, bar + 3), colour)
    draw.text((MARGIN, middle), prompt, INK, font(), anchor="lm")
    draw.text((SIDE - MARGIN, middle), step, FAINT, font(), anchor="rm")
    return sheet


@lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont:
    """Return the font of the captions: DejaVu Sans, with the letters of Latin, Greek and Cyrillic."""
    return ImageFont.truetype(FONT, FONT_SIZE)


def printable(text: str) -> str:
    """Return a text in one line, with a question mark for signs that the font lacks."""
    plain = unicodedata.normalize("NFC", " ".join(text.split()))
    return re.sub(r"\?{2,}", "?", "".join(sign if has_glyph(sign) else "?" for sign in plain))


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
