"""The inputs of photo and mask: they hand over files as they came; the library reads them, and says what is wrong."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.image_editor import EditorData
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from .errors import told_on_the_page
from .files import keep

PHOTOS = Path(__file__).resolve().parent.parent / "assets" / "examples"
MARKER = ("#ffd400", 0.8)
"""The colour that a mask is painted in, and how much of the photo it covers: bright enough to count as white."""
BACKDROP = 512
"""The longest side, in pixels, of the photo that a mask is painted on."""


def own_file(path: str, name: str = "image") -> str:
    """The path as it came, where its file was uploaded, made by the page or is an example; ValueError for all others.

    Whoever speaks HTTP may send any path. What is not there is refused in the same words as what is not ours, so that
    no answer tells what lies on the server.
    """
    try:
        real = Path(os.path.realpath(path))
        folders = [os.path.realpath(folder) for folder in (get_upload_folder(), PHOTOS)]
        if real.is_file() and any(real.is_relative_to(folder) for folder in folders):
            return path
    except (OSError, ValueError):  # too long, or with a zero inside
        pass
    raise ValueError(f"{name} must be uploaded here, or be one of the examples: choose it again")


class PhotoInput(gr.Image):
    """An image input whose value is the path of the file, unread.

    A class, not a changed instance: Gradio builds a visitor's own copy anew once an event has updated the component.
    """

    is_template = True  # drawn as its base class is
    argument = "image"

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The upload's path; a webcam's picture comes as text and becomes a file first.

        Gradio trusts a path that comes without its `meta`, so it is checked here, for every event.
        """
        with told_on_the_page():
            if payload is None:
                return None
            if payload.path or not (payload.url or "").startswith("data:"):
                return own_file(payload.path or "", self.argument)
            path = super().preprocess(payload)
            assert isinstance(path, str), "the component's type is filepath"
            return path


class MaskFile(PhotoInput):
    """The same for a mask, as programs send it."""

    argument = "mask"

    def get_block_name(self) -> str:
        """Drawn as an image is."""
        return "image"


class MaskEditor(gr.ImageEditor):
    """A mask that is painted on a photo; its value is the path of the layer with the strokes, unread."""

    is_template = True
    accept_blobs = None  # type: ignore[assignment]  # strokes come as uploads; this route would keep any amount in memory

    def preprocess(self, payload: EditorData | None) -> str | None:  # type: ignore[override]
        """The path of the strokes, None where there is no layer; see `PhotoInput.preprocess`."""
        with told_on_the_page():
            if payload is None or not payload.layers:
                return None
            return own_file(payload.layers[0].path, "mask")


def photo_input(kind: type[PhotoInput] = PhotoInput, **options: Any) -> PhotoInput:
    """A photo input, or one of that kind, with the settings that keep Gradio from changing the file."""
    return kind(type="filepath", image_mode=None, **options)


def mask_editor(**options: Any) -> MaskEditor:
    """A mask editor with a brush and an eraser, and nothing else."""
    brush = gr.Brush(colors=[MARKER], color_mode="fixed")
    return MaskEditor(type="filepath", sources=[], transforms=(), brush=brush, layers=False, buttons=[], **options)


def backdrop(photo: str | None) -> dict[str, Any] | None:
    """What a mask editor shows to paint on: the photo, upright, as large as a screen needs; None where there is none.

    The whole of it, for a mask lies over the photo before that is fitted.
    """
    from stable_diffusion.images import ImageError, read_image

    if photo is None:
        return None
    try:
        picture = read_image(photo)
    except ImageError:  # whoever draws with it says so
        return None
    picture.thumbnail((BACKDROP, BACKDROP))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"background": keep("photo.png", buffer.getvalue()), "layers": [], "composite": None}


def painted(mask: str | None) -> str | None:
    """The path of a mask in which something is painted, else None; ValueError where it is no picture."""
    from stable_diffusion.images import read_image

    return mask if mask and read_image(mask, background="black", name="mask").getbbox() else None


def photo_path(value: str | Path | None) -> str:
    """The uploaded photo's path; ValueError where none was given."""
    if value is None:
        raise ValueError("image is missing: upload a photo, or pick an example below")
    return str(value)
