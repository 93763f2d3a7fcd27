"""The contents of a picture's file beside its pixels: settings as text, mark, and content credentials."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from stable_diffusion.request import RequestError

from .credentials import with_credentials
from .infotext import LINE, Infotext, parse_infotext
from .marks import Mark
from .other_programs import read_graph, read_json_settings

KEY = "parameters"
"""The text chunk of a PNG that holds the settings, as in AUTOMATIC1111's files."""
MAX_TEXT = 2**20
"""Characters of settings that are read from a file."""

FORMAT_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
"""The formats of pictures to keep, by Pillow's names, with Pillow's options for their quality."""

# The first eight bytes of an EXIF UserComment name its character code (EXIF 2.32, 4.6.5).
COMMENT_CODES = {b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8"}

TEXTS = {
    "invokeai_metadata": (read_json_settings, "InvokeAI"),
    KEY: (read_json_settings, None),
    "prompt": (read_graph, "ComfyUI"),
    "workflow": (None, "ComfyUI"),
    "sd-metadata": (None, "InvokeAI"),
    "Dream": (None, "InvokeAI"),
    "fooocus_scheme": (None, "Fooocus"),
    "sui_image_params": (None, "SwarmUI"),
}
"""By the name of a text in a file: the reader of its JSON, and the program that writes it."""


def encoded(image: Image.Image, text: str = "", kind: str = "PNG", mark: Mark | None = None, **options: Any) -> bytes:
    """Return a picture as a file of one of the formats, with settings as text, its mark, and content credentials.

    mark: without one, that of trained algorithmic media. options: Pillow's, beside `FORMAT_OPTIONS`. Raises
    `RequestError` where the text is too long for the format.
    """
    buffer, mark = io.BytesIO(), mark or Mark()
    text = text.encode("utf-8", "replace").decode("utf-8")  # without halves of surrogate pairs
    try:
        image.save(buffer, kind, **FORMAT_OPTIONS[kind] | options, **save_options(kind, text, mark))
    except ValueError:  # Pillow's, for more than the 64 kB that a JPEG has room for
        raise RequestError(f"{len(text):,} characters of settings are too long for a {kind}: choose PNG") from None
    return with_credentials(
        buffer.getvalue(), f"image/{kind.lower()}", mark
    )  # last: any later change would break their signature


def save_options(kind: str, text: str, mark: Mark) -> dict[str, Any]:
    """Return the options of Pillow's `save` that write a mark and a text into a file of that format."""
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", mark.xmp)
        if text:
            chunks.add_text(KEY, text)
        return {"pnginfo": chunks}
    if not text:
        return {"xmp": mark.xmp.encode()}
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")  # as Pillow writes all EXIF data
    return {"xmp": mark.xmp.encode(), "exif": exif}


def read_infotext(path: str | Path) -> Infotext:
    """Return the settings in a picture's file. Raises `RequestError` where it has none, or none that can be read."""
    name = repr(Path(path).name)
    texts = read_texts(path, name)
    longest = max(map(len, texts.values()), default=0)
    if longest > MAX_TEXT:
        raise RequestError(
            f"{name} carries {longest:,} characters of settings, at most {MAX_TEXT:,} are read: "
            "choose a picture that this page made"
        )
    settings = settings_of_texts(texts)
    if settings is not None:
        return settings
    program = next((program for key, (_, program) in TEXTS.items() if program and key in texts), None)
    if program is not None:
        raise RequestError(f"{name} was made by {program}, in a way that can't be read here: copy its prompt yourself")
    raise RequestError(
        f"{name} carries no settings, as pictures of diffusers and edited ones do not: choose one made here, or by "
        "AUTOMATIC1111's web UI, ComfyUI, Fooocus or InvokeAI"
    )


def read_texts(path: str | Path, name: str) -> dict[str, str]:
    """Return the texts of a picture's file that are in `TEXTS`, without decoding its pixels."""
    from stable_diffusion.images import ImageError, open_image

    try:
        with open(path, "rb") as file:
            image = open_image(name, file)
            texts = {key: text for key, text in image.info.items() if isinstance(text, str) and text.strip()}
            # Not a PNG's own `getexif`, which decodes the whole picture to look behind it.
            exif = Image.Image.getexif(image)
            comment = exif.get_ifd(IFD.Exif).get(Base.UserComment)
    except ImageError:
        raise
    except Exception:  # a damaged or hostile file makes Pillow raise nearly anything
        raise RequestError(f"{name} is not a picture that can be read: choose one that this page made") from None
    texts.setdefault(KEY, comment_text(comment, little_endian=exif.endian == "<"))
    return {key: text for key, text in texts.items() if key in TEXTS}


def settings_of_texts(texts: dict[str, str]) -> Infotext | None:
    """Return the settings in a file's texts, or None if they hold none that can be read."""
    for key, (read, _) in TEXTS.items():
        try:
            values = json.loads(texts.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if read is not None and isinstance(values, dict) and (settings := read(values)) is not None:
            return settings
    text = texts.get(KEY, "")
    # Without a line of settings, what begins like JSON is another program's, not a prompt.
    return parse_infotext(text) if LINE.search(text) or text.strip()[:1] not in ("", "{") else None


def comment_text(comment: object, *, little_endian: bool) -> str:
    """Return the text of an EXIF UserComment; empty without one, or where its character code is unknown.

    little_endian: the byte order of the file's EXIF data. Programs write the text in either order, whatever that one
    is: the file's own counts unless only the other gives a line of settings or, without one, more letters of ASCII.
    """
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else ""
    code, body = comment[:8], comment[8:]
    codecs = ["utf-16-le", "utf-16-be"] if code == b"UNICODE\0" else [COMMENT_CODES.get(code, "")]
    texts = [body.decode(codec, "replace").rstrip("\0 ") for codec in codecs if codec]
    if not little_endian:
        texts.reverse()
    return max(texts, key=lambda text: math.inf if LINE.search(text) else ascii_letters(text), default="")


def ascii_letters(text: str) -> int:
    """Return the number of ASCII characters in a text."""
    return len(text.encode("ascii", "ignore"))
