"""The photo input: it hands over the upload as it is; the library reads it, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData


class PhotoInput(gr.Image):
    """An image input whose value is the path of the file, unread.

    A class, not a changed instance: Gradio builds a visitor's own copy anew once an event has updated the component.
    """

    is_template = True  # drawn as its base class is

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The upload's path; a webcam's picture comes as text and becomes a file first."""
        if payload is not None and payload.path:
            return payload.path
        path = super().preprocess(payload)
        assert path is None or isinstance(path, str), "the component's type is filepath"
        return path


def photo_input(**options: Any) -> PhotoInput:
    """A photo input with the settings that keep Gradio from changing the file."""
    return PhotoInput(type="filepath", image_mode=None, **options)


def photo_path(value: str | Path | None) -> str:
    """The uploaded photo's path; ValueError where none was given."""
    if value is None:
        raise ValueError("image is missing: upload a photo, or pick an example below")
    return str(value)
