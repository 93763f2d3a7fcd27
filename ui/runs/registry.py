"""The runs of all visitors, by names that nobody can guess: a page that is loaded again asks for its own."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from stable_diffusion.request import Request

from ..keep.history import FinishedRun
from ..keep.link import to_query
from .events import Event
from .limits import REMEMBERED_RUNS


def new_run_id() -> str:
    """Return a name for a run that nobody can guess."""
    return uuid.uuid4().hex


@dataclass
class PageRun:
    """A run that a page has asked for: its request, and its film and result so far."""

    kind: str
    asked: Request
    """The request of the form, whose photo and mask are files."""
    run_id: str = field(default_factory=new_run_id)
    request: Request | None = None
    """The complete request, once the run has started."""
    film: list[Event] = field(default_factory=list)
    finished: FinishedRun | None = None
    stopped: bool = False
    """Whether Stop was pressed, possibly before the backend had the run."""
    page: object = None
    """The page that shows the run while it goes on; another page that asks for the run takes over."""

    @property
    def link(self) -> str:
        """The query of a link that draws the run again; empty before it has started."""
        return "" if self.request is None else to_query(self.request)

    def add(self, event: Event) -> None:
        """Insert a step into the film in order; a preview that comes after later steps replaces its own step."""
        if event.start is not None:
            self.add(event.start)
        others = (one for one in self.film if one.index != event.index)
        self.film = sorted([*others, replace(event, start=None)], key=lambda one: one.index)

    def finish(self, finished: FinishedRun) -> None:
        """Note the files of the run, and free the memory of its film and pictures."""
        self.finished, self.request, self.film = finished, finished.request, []

    def drop_pictures(self) -> None:
        """Free the memory of photo and mask of a run that ended without a result: the files are read again."""
        if self.request is not None:
            self.request = self.request.with_values(image=self.asked.image, mask=self.asked.mask)


class Registry:
    """The newest runs, finished or not."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, PageRun] = OrderedDict()

    def add(self, kind: str, request: Request) -> PageRun:
        """Register a new run."""
        run = PageRun(kind, request)
        self._runs[run.run_id] = run
        while len(self._runs) > REMEMBERED_RUNS:
            self._runs.popitem(last=False)
        return run

    def get(self, run_id: str) -> PageRun | None:
        """Return the run of that name; None if it was forgotten, or belongs to another server."""
        return self._runs.get(run_id)
