"""The photo input: it hands over the upload as it is; the library reads it, and says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from ..runs.errors import told_on_the_page

PHOTOS = Path(__file__).resolve().parents[2] / "assets" / "examples"

SEEN = """() => setTimeout(() => {
  document.querySelector("#i2i-photo").scrollIntoView({block: "nearest", behavior: "smooth"});
})"""
"""Scroll to the photo that an example or another tab has put there."""


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


def photo_input(kind: type[PhotoInput] = PhotoInput, **options: Any) -> PhotoInput:
    """A photo input, or one of that kind, with the settings that keep Gradio from changing the file."""
    return kind(type="filepath", image_mode=None, **options)


def photo_path(value: str | Path | None) -> str:
    """The uploaded photo's path; ValueError where none was given."""
    if value is None:
        raise ValueError("image is missing: upload a photo, or pick an example below")
    return str(value)
