"""The finished runs of a visit, kept in the visitor's own session and nowhere else."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from stable_diffusion.request import Request

from ..keep.files import keep, stem
from ..keep.link import to_query
from ..runs.events import Event
from .film import keep_film
from .live import Message, with_file

MAX_RUNS = 40


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    request: complete and seeded; its photo and mask are files, as they were uploaded. files: the images. photo: the
    file of the photo at the size of the images. film: the file of the film; both are None if there is none.
    """

    kind: str
    request: Request
    files: tuple[str, ...]
    film: str | None
    photo: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make this run again, by their names in `Request`."""
        return dict(vars(self.request))

    @property
    def link(self) -> str:
        """The query of a link to it."""
        return to_query(self.request)

    def film_messages(self, film: list[Message]) -> list[Message]:
        """Return the film as the page shows it: a single image is shown from its file at the end."""
        return with_file(film, self.files[0]) if len(self.files) == 1 else film


def keep_images(request: Request, event: Event) -> tuple[str, ...]:
    """Write the images of a run's last event to files and return their paths."""
    assert event.images is not None
    part = f"-step-{event.index}" if event.stopped else ""
    return tuple(
        keep(f"{stem(request.prompt, event.seed + offset)}{part}.png", picture)
        for offset, picture in enumerate(event.images)
    )


def keep_run(kind: str, asked: Request, request: Request, event: Event, film: list[Message]) -> FinishedRun:
    """Write the images, the photo and the film of a run to files.

    asked: the request with the uploaded photo and mask. request: the run's own. event: the last one.
    """
    photo = None
    if isinstance(request.image, Image.Image):
        buffer = io.BytesIO()
        request.image.save(buffer, "PNG")
        photo = keep("photo.png", buffer.getvalue())
    request = request.with_values(image=asked.image, mask=asked.mask)
    return FinishedRun(kind, request, keep_images(request, event), keep_film(film) if film else None, photo)


class History:
    """The thumbnails of a visit, newest first. Built before the tabs that add to it, and placed with `render`."""

    def __init__(self) -> None:
        self.runs = gr.State([])
        self.gallery = gr.Gallery(
            label="Your visit so far",
            format="png",
            columns=8,
            fit_columns=False,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            buttons=["download_all"],
            interactive=False,
            elem_id="history",
            render=False,
        )

    @staticmethod
    def add(runs: list[FinishedRun], run: FinishedRun | None) -> tuple[list[FinishedRun], list[str]]:
        """Return a visitor's runs with one more, newest first, and the files of their images."""
        runs = trim(runs if run is None or run in runs else [run, *runs])
        return runs, [file for run in runs for file in run.files]


def of_pictures(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Return the run of each picture of the gallery."""
    return [run for run in runs for _ in run.files]


def trim(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Return the newest runs whose images still exist: files are deleted after a day."""
    return [run for run in runs[:MAX_RUNS] if all(Path(file).exists() for file in run.files)]
