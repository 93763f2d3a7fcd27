"""The photo input. Its value is the path of the upload, which the library reads and checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from stable_diffusion.request import RequestError

from ..keep.files import keep_data
from ..runs.errors import errors_on_page
from ..stage.opening import PHOTOS

SEEN = """() => setTimeout(() => {
  document.querySelector("#i2i-photo").scrollIntoView({block: "nearest", behavior: "smooth"});
})"""
"""Scroll to the photo that another tab has put there."""


def own_file(path: str, name: str = "image") -> str:
    """Return the path of an upload, of a file that the page made, or of an example; `RequestError` for any other.

    A program may send any path. The message is the same for a missing file and for one that is not ours, so that it
    reveals nothing about the server's disk.
    """
    try:
        real = Path(os.path.realpath(path))
        folders = [os.path.realpath(folder) for folder in (get_upload_folder(), PHOTOS)]
        if real.is_file() and any(real.is_relative_to(folder) for folder in folders):
            return path
    except (OSError, ValueError):  # too long, or with a zero inside
        pass
    raise RequestError(f"{name} must be uploaded here, or be one of the examples: choose it again")


class PhotoInput(gr.Image):
    """An image input whose value is the path of the file, unread.

    A class, because Gradio builds a visitor's own copy of a component once an event has updated it.
    """

    is_template = True  # the browser renders it as its base class
    argument = "image"

    def preprocess(self, payload: ImageData | None) -> str | None:
        """Return the upload's path; a picture that comes as text, a data URI, becomes a file first, as it is.

        Gradio trusts a path without `meta`, so every event checks it here.
        """
        with errors_on_page():
            if payload is None:
                return None
            if payload.url and payload.url.startswith("data:") and not payload.path:
                return keep_data(self.argument, payload.url)
            return own_file(payload.path or "", self.argument)


class MaskFile(PhotoInput):
    """The same for a mask, as programs send it."""

    argument = "mask"

    def get_block_name(self) -> str:
        """Return the name of the component that the browser renders."""
        return "image"


def photo_input(kind: type[PhotoInput] = PhotoInput, **options: Any) -> PhotoInput:
    """Return a photo input, with the settings that keep Gradio from changing the file."""
    return kind(type="filepath", image_mode=None, **options)


def require_photo(path: str | None) -> str:
    """Return the path of the photo; `RequestError` if there is none."""
    if path is None:
        raise RequestError("image is missing: upload a photo, or pick an example below")
    return path
