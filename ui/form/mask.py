"""A mask painted over a photo, by mouse or finger: the strokes come as a small PNG, and what is not painted stays.

Not `gr.ImageEditor`: it uploads photo, strokes and both together at every change of any event's status, some forty
times for one move of a slider.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import gradio as gr

from ui.stage import live

from ..keep.files import keep
from ..runs.errors import told_on_the_page
from ..runs.events import webp

HERE = Path(__file__).parent
MASKS: set[str] = set()
"""The files of all masks, for Gradio to delete."""
BACKDROP = 512
"""The longest side, in pixels, of the photo that is painted on, and so of the mask."""
START = "data:image/png;base64,"
MAX_TEXT = 1_000_000


class MaskPainter(gr.HTML):
    """A photo to paint on; the value is the path of a mask, or None where nothing was painted."""

    def preprocess(self, payload: str | None) -> str | None:
        """Write what the browser, or whoever speaks HTTP, sent as a mask to a file, unread."""
        with told_on_the_page():
            if not payload:
                return None
            if not isinstance(payload, str) or not payload.startswith(START) or len(payload) > MAX_TEXT:
                raise ValueError("mask must be a PNG of at most 750 kB, as text: paint it here")
            try:
                content = base64.b64decode(payload.removeprefix(START), validate=True)
            except binascii.Error:
                raise ValueError("mask is cut off on its way: paint it again") from None
            path = keep("mask.png", content)
            MASKS.add(path)
            return path


def mask_painter(elem_id: str) -> MaskPainter:
    """The painter, without a photo: `backdrop` gives it one."""
    return MaskPainter(
        None,
        html_template=(HERE / "mask.html").read_text(encoding="utf-8"),
        css_template=(HERE / "mask.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "mask.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=elem_id,
        label="Mask",
        photo="",
    )


def backdrop(photo: str | None) -> MaskPainter:
    """The update that gives a painter its photo, upright and whole: a mask lies over it before it is fitted."""
    from stable_diffusion.images import ImageError, read_image

    try:
        picture = read_image(photo) if photo else None
    except ImageError:  # whoever draws with it says so
        picture = None
    if picture is None:
        return MaskPainter(photo="", value=None)
    picture.thumbnail((BACKDROP, BACKDROP))
    return MaskPainter(photo=live.as_uri(webp(picture)), value=None)


def painted(mask: str | None) -> str | None:
    """The path of a mask in which something is painted, else None; ValueError where it is no picture."""
    from stable_diffusion.images import read_image

    return mask if mask and read_image(mask, background="black", name="mask").getbbox() else None
