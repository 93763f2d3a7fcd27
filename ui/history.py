"""What a visitor has made: kept in the visitor's own session, and nowhere else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from .files import keep, stem
from .link import to_query
from .live import Message
from .metadata import png_bytes
from .request import Request
from .run import Event

MAX_RUNS = 40
MAX_FILM_BYTES = 40_000_000


@dataclass(frozen=True)
class Run:
    """A run that is over: what was asked (with the seed it got), the pictures' files, and its film."""

    kind: str
    request: Request
    files: tuple[str, ...]
    film: tuple[Message, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make this run again, by their names in `Request`."""
        return dataclasses.asdict(self.request)

    @property
    def link(self) -> str:
        """The query of a link to it."""
        return to_query(self.request)


def keep_run(kind: str, request: Request, event: Event, film: list[Message]) -> Run:
    """Write a run's pictures to files; `event` is its last."""
    assert event.images is not None
    part = f"-step-{event.index}" if event.stopped else ""
    files = [
        keep(f"{stem(request.prompt, event.seed + offset)}{part}.png", png_bytes(image))
        for offset, image in enumerate(event.images)
    ]
    return Run(kind, dataclasses.replace(request, seed=event.seed), tuple(files), tuple(film))


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

    def add(self, runs: list[Run], run: Run) -> dict[Component, Any]:
        """The updates that add a run to those of a visitor."""
        runs = trim([run, *runs])
        return {self.runs: runs, self.gallery: [file for run in runs for file in run.files]}


def at(runs: list[Run], index: int) -> Run:
    """The run whose picture is at that place of the gallery."""
    return [run for run in runs for _ in run.files][index]


def trim(runs: list[Run]) -> list[Run]:
    """The newest runs; the films of the oldest ones are forgotten first, but for their last picture."""
    kept, size = [], 0
    for run in runs[:MAX_RUNS]:
        size += sum(len(message["x0"] or "") + len(message["xt"] or "") for message in run.film)
        kept.append(run if size <= MAX_FILM_BYTES else dataclasses.replace(run, film=run.film[-1:]))
    return kept
