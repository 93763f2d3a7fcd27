"""What travels inside a picture's file: its settings as text, and the mark that a program generated it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from .infotext import parse_infotext
from .other_programs import read_graph, read_json_settings

KEY = "parameters"
"""The text chunk of a PNG that holds the settings, as in AUTOMATIC1111's files."""
MAX_TEXT = 64 * 1024
"""How many characters of settings are read from a file."""
MAX_GRAPH = 2**20
"""The same for ComfyUI's graphs."""

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
"""The mark of generated media (IPTC Photo Metadata Standard, Digital Source Type)."""

QUALITY: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
"""The formats of pictures to keep, by Pillow's names, with what keeps them good."""

# The first eight bytes of an EXIF UserComment name its character code (EXIF 2.32, 4.6.5).
CODES = {b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8"}

PROGRAMS = {
    "workflow": "ComfyUI",
    "prompt": "ComfyUI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "sui_image_params": "SwarmUI",
}
"""Whose file it is that holds a text of this name."""


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture as a file of one of the formats in `QUALITY`, with the text in its `info`, and the mark, inside.

    Raises ValueError where the text is too long for the format.
    """
    buffer = io.BytesIO()
    text = image.info[KEY].encode("utf-8", "replace").decode("utf-8")  # without halves of surrogate pairs
    try:
        image.save(buffer, kind, **QUALITY[kind], **save_options(kind, text))
    except ValueError:  # Pillow's, of the 64 kB that a JPEG has room for
        raise ValueError(f"{len(text):,} characters of settings are too long for a {kind}: choose PNG") from None
    return buffer.getvalue()


def save_options(kind: str, text: str = "") -> dict[str, Any]:
    """What Pillow's `save` is to be told so that a file of that format holds the mark and a text."""
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", XMP)
        if text:
            chunks.add_text(KEY, text)
        return {"pnginfo": chunks}
    if not text:
        return {"xmp": XMP.encode()}
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return {"xmp": XMP.encode(), "exif": exif}


def read_infotext(path: str | Path) -> dict[str, Any]:
    """The settings in a picture's file, as `parse_infotext` gives them; ValueError says what is wrong with it."""
    from stable_diffusion.images import ImageError, open_image

    name = repr(Path(path).name)
    try:
        with open(path, "rb") as file:
            image = open_image(name, file)
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str) and value.strip()}
            # Not a PNG's own `getexif`, which decodes the whole picture to look behind it.
            comment = Image.Image.getexif(image).get_ifd(IFD.Exif).get(Base.UserComment)
    except ImageError:
        raise
    except Exception:  # a damaged or hostile file makes Pillow raise nearly anything
        raise ValueError(f"{name} is not a picture that can be read: choose one that this page made") from None
    texts.setdefault(KEY, user_comment(comment))
    for key, value in texts.items():
        limit = MAX_GRAPH if key in ("prompt", "workflow") else MAX_TEXT
        if key in (KEY, "invokeai_metadata", *PROGRAMS) and len(value) > limit:
            raise ValueError(
                f"{name} carries {len(value):,} characters of settings, at most {limit:,} are read: "
                "choose a picture that this page made"
            )
    settings = read_texts(texts)
    if settings is None:
        program = next((program for key, program in PROGRAMS.items() if key in texts), None)
        if program is not None:
            raise ValueError(
                f"{name} was made by {program}, in a way that can't be read here: copy its prompt yourself"
            )
        raise ValueError(
            f"{name} carries no settings, as pictures of diffusers and edited ones do not: choose one made here, or by "
            "AUTOMATIC1111's web UI, ComfyUI, Fooocus or InvokeAI"
        )
    return settings


def read_texts(texts: dict[str, str]) -> dict[str, Any] | None:
    """The settings in a file's texts; None where there are none that are plain to read."""
    for key, read in (("invokeai_metadata", read_json_settings), (KEY, read_json_settings), ("prompt", read_graph)):
        try:
            values = json.loads(texts.get(key, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and (settings := read(values)) is not None:
            return settings
    text = texts.get(KEY, "")
    return None if not text or text.lstrip().startswith("{") else parse_infotext(text)


def user_comment(comment: Any) -> str:
    """The text of an EXIF UserComment; empty where there is none, or in a code that is not known."""
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else ""
    code, body = comment[:8], comment[8:]
    if code == b"UNICODE\0":  # in the byte order of whoever wrote it, which the first letter tells
        return body.decode("utf-16-le" if body[1:2] == b"\0" else "utf-16-be", "replace").strip("\0 ")
    return body.decode(CODES[code], "replace").strip("\0 ") if code in CODES else ""
