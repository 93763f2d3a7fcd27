"""What a visitor has made: kept in the visitor's own session, and nowhere else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from stable_diffusion.request import Request

from ..runs.events import Event
from ..stage.film import keep_film
from ..stage.live import Message, with_file
from .files import keep, stem
from .link import to_query

MAX_RUNS = 40


@dataclass(frozen=True)
class Kept:
    """A run that is over: what was asked (with the seed it got), and the files of its pictures and its film."""

    kind: str
    request: Request
    files: tuple[str, ...]
    film: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make this run again, by their names in `Request`."""
        return dataclasses.asdict(self.request)

    @property
    def link(self) -> str:
        """The query of a link to it."""
        return to_query(self.request)

    def shown(self, film: list[Message]) -> list[Message]:
        """Its film as the page shows it: with the file itself at the end, where that is one picture."""
        return with_file(film, self.files[0]) if len(self.files) == 1 else film


def keep_run(kind: str, request: Request, event: Event, film: list[Message]) -> Kept:
    """Write a run's pictures and its film to files; `event` is its last."""
    assert event.images is not None
    part = f"-step-{event.index}" if event.stopped else ""
    files = [
        keep(f"{stem(request.prompt, event.seed + offset)}{part}.png", picture)
        for offset, picture in enumerate(event.images)
    ]
    return Kept(kind, dataclasses.replace(request, seed=event.seed), tuple(files), keep_film(film) if film else None)


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
    def add(runs: list[Kept], run: Kept | None) -> tuple[list[Kept], list[str]]:
        """A visitor's runs with one more, newest first, and the files of their pictures."""
        runs = trim(runs if run is None or run in runs else [run, *runs])
        return runs, [file for run in runs for file in run.files]


def of_pictures(runs: list[Kept]) -> list[Kept]:
    """The run of each picture of the gallery."""
    return [run for run in runs for _ in run.files]


def trim(runs: list[Kept]) -> list[Kept]:
    """The newest runs whose pictures are still there: after a day, files are deleted."""
    return [run for run in runs[:MAX_RUNS] if all(Path(file).exists() for file in run.files)]
