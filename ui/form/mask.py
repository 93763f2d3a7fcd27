"""A mask that is painted over the photo by mouse or finger, and comes as a small PNG.

`gr.ImageEditor` would upload photo, strokes and both together at every change of any event's status, some forty times
for one move of a slider.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from stable_diffusion.request import RequestError
from ui.stage import live

from ..keep.files import keep_data
from ..runs.errors import errors_on_page
from ..runs.events import webp

HERE = Path(__file__).parent
BACKDROP = 512
"""Longest side, in pixels, of the photo to paint on, and of the mask."""
START = "data:image/png;base64,"
MAX_TEXT = 1_000_000


class MaskPainter(gr.HTML):
    """A photo to paint on; the value is the path of a mask, or None if nothing is painted."""

    def preprocess(self, payload: str | None) -> str | None:
        """Write the mask to a file, without decoding it, and return its path."""
        with errors_on_page():
            if not payload:
                return None
            if not isinstance(payload, str) or not payload.startswith(START) or len(payload) > MAX_TEXT:
                raise RequestError("mask must be a PNG of at most 750 kB, as text: paint it here")
            return keep_data("mask", payload)


def mask_painter(elem_id: str) -> MaskPainter:
    """Return a painter without a photo, to place at the stage; `backdrop` adds it."""
    return MaskPainter(
        None,
        html_template=(HERE / "mask.html").read_text(encoding="utf-8"),
        css_template=(HERE / "mask.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "mask.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=elem_id,
        label="Mask",
        photo="",
        fit="crop",
        ratio="1",
        padding=False,
        render=False,
    )


def backdrop(on: bool, photo: str | None, fit: str, width: float, height: float) -> MaskPainter:
    """Return the update that gives a painter its photo, upright and whole; it shows the part that the run uses.

    on: whether a mask is wanted; if not, the painter is hidden, and keeps its strokes for another time. The browser
    clears the mask when another photo comes; of the same photo it stays.
    """
    from stable_diffusion.images import ImageError, read_image

    try:
        picture = read_image(photo, jpeg_size=(BACKDROP, BACKDROP)) if on and photo else None
    except ImageError:  # Generate shows the message
        picture = None
    if picture is None:
        return MaskPainter(photo="")
    picture.thumbnail((BACKDROP, BACKDROP))
    return MaskPainter(photo=live.webp_uri(webp(picture)), fit=fit, ratio=f"{width} / {height}")
