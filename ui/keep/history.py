"""The finished runs of a visit, kept in the visitor's own session and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from stable_diffusion.request import Request

from .files import NoRoom, discard, keep, stem
from .link import to_query

MAX_RUNS = 40
"""Number of runs that a visit remembers."""
Visit = tuple[list["FinishedRun"], list[tuple[str, str]]]
"""The runs of a visit, and the paths of their pictures with the prompts, which screen readers say."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over: its request, complete and seeded, and the paths of its pictures and of its film.

    kind: the tab that asked, "t2i" or "i2i". request: with the uploaded files of photo and mask. film: None for a run
    without previews, or without room for it. photo: the photo as the run used it, None for text-to-image. best: the
    place of the picture that matches the prompt best, None where nothing tells.
    """

    kind: str
    request: Request
    files: tuple[str, ...]
    film: str | None = None
    photo: str | None = None
    best: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of its request by name."""
        return dataclasses.asdict(self.request)

    @property
    def link(self) -> str:
        """The query of a link that repeats the run."""
        return to_query(self.request)


def keep_pictures(request: Request, pictures: Sequence[bytes], stopped_at: int | None = None) -> list[str]:
    """Write PNG files of a seeded request and return their paths; `stopped_at` is the last step of a stopped run.

    Raises `NoRoom` where the disk is full, and leaves none of them.
    """
    assert request.seed is not None
    part = "" if stopped_at is None else f"-step-{stopped_at}"
    files: list[str] = []
    try:
        for seed, picture in enumerate(pictures, request.seed):
            files.append(keep(f"{stem(request.prompt, seed)}{part}.png", picture))
    except NoRoom:
        for file in files:
            discard(file)
        raise
    return files


class History:
    """The gallery of a visit, newest run first. Built before the tabs that add to it, and placed with `render`."""

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
    def add(runs: list[FinishedRun], run: FinishedRun | None) -> Visit:
        """Return the runs with `run` before them, and all their pictures."""
        return visit_of(runs if run is None or run in runs else [run, *runs])

    @staticmethod
    def add_earlier(runs: list[FinishedRun], earlier: list[FinishedRun]) -> Visit:
        """Return the runs with earlier ones behind them, and all their pictures."""
        return visit_of([*runs, *(run for run in earlier if run not in runs)])


def visit_of(runs: list[FinishedRun]) -> Visit:
    """Return the runs whose pictures still exist, and all their pictures."""
    runs = with_files(runs)
    return runs, [(file, run.request.prompt) for run in runs for file in run.files]


def by_picture(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Return the run of each picture of the gallery, in its order."""
    return [run for run in runs for _ in run.files]


def with_files(runs: list[FinishedRun]) -> list[FinishedRun]:
    """Return the newest runs whose pictures still exist: files are deleted after a day."""
    return [run for run in runs[:MAX_RUNS] if all(Path(file).exists() for file in run.files)]
