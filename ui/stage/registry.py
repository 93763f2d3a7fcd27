"""The runs of all visitors, by names that nobody can guess: a page that is loaded again asks for its own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from operator import itemgetter

from stable_diffusion.request import Request

from ..keep.link import to_query
from ..runs.limits import REMEMBERED_RUNS
from .history import FinishedRun
from .live import Message, new_run

INDEX = itemgetter("index")


@dataclass
class PageRun:
    """A run that a page has asked for: its request, and its film and result so far."""

    kind: str
    asked: Request
    """The request of the form, whose photo and mask are files."""
    run_id: str = field(default_factory=new_run)
    request: Request | None = None
    """The complete request, once the run has started."""
    film: list[Message] = field(default_factory=list)
    finished: FinishedRun | None = None
    stopped: bool = False
    """Whether Stop was pressed, possibly before the backend had the run."""
    page: object = None
    """The page that shows the run while it goes on; another page that asks for the run takes over."""

    @property
    def link(self) -> str:
        """The query of a link that draws the run again; empty before it has started."""
        return "" if self.request is None else to_query(self.request)

    def add(self, step: Message) -> Message:
        """Insert a step into the film in order; a picture that comes after later steps replaces its step."""
        if step["start"] is not None:
            self.add(step["start"])
        others = (one for one in self.film if one["index"] != step["index"])
        self.film = sorted([*others, {**step, "start": None}], key=INDEX)
        return step

    def finish(self, finished: FinishedRun) -> None:
        """Note the files of the run, and free the memory of its film and pictures."""
        self.finished, self.request, self.film = finished, finished.request, []


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
