"""The runs of all visitors, by names that nobody can guess: a page that is loaded again asks for its own."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from PIL import Image

from stable_diffusion.request import Request

from ..keep.history import FinishedRun
from ..keep.link import to_query
from .events import Event
from .limits import MAX_FILM, MAX_LEFT_BYTES, REMEMBERED_RUNS
from .visitors import crowding


def new_run_id() -> str:
    """Return a name for a run that nobody can guess."""
    return uuid.uuid4().hex


@dataclass
class PageRun:
    """A run that a page has asked for: its request, and its film and result so far."""

    kind: str
    asked: Request
    """The request of the form, whose photo and mask are files."""
    address: str = ""
    """The network address that asked."""
    run_id: str = field(default_factory=new_run_id)
    request: Request | None = None
    """The complete request, once the run has started."""
    film: list[Event] = field(default_factory=list)
    """The steps so far; of a long run those at multiples of `stride`, and the newest."""
    stride: int = 1
    finished: FinishedRun | None = None
    stopped: bool = False
    """Whether Stop was pressed, possibly before the backend had the run."""
    page: object = None
    """The page that shows the run while it goes on; another page that asks for the run takes over."""

    @property
    def link(self) -> str:
        """The query of a link that draws the run again; empty before it has started."""
        return "" if self.request is None else to_query(self.request.with_values(image=self.asked.image))

    def add(self, event: Event) -> None:
        """Insert a step into the film in order; a preview that comes after later steps replaces its own step.

        A film of more than `MAX_FILM` bytes loses every other step.
        """
        if event.start is not None:
            self.add(event.start)
        others = (one for one in self.film if one.index != event.index)
        film = sorted([*others, replace(event, start=None)], key=lambda one: one.index)
        self.film = self._thinned(film)
        while self.film_size > MAX_FILM and len(self.film) > 2:
            self.stride *= 2
            self.film = self._thinned(film)

    def _thinned(self, film: list[Event]) -> list[Event]:
        return [*(one for one in film[:-1] if one.index % self.stride == 0), film[-1]]

    @property
    def film_size(self) -> int:
        """Bytes of the film's pictures."""
        return sum(len(one or b"") for step in self.film for one in (step.x_0, step.x_t, step.guided, step.unguided))

    @property
    def size(self) -> int:
        """Bytes of all pictures of the run that are in memory, about."""
        pictures = () if self.request is None else (self.request.image, self.request.mask)
        return self.film_size + sum(3 * one.width * one.height for one in pictures if isinstance(one, Image.Image))

    def finish(self, finished: FinishedRun) -> None:
        """Note the files of the run, and free the memory of its film and pictures."""
        self.finished, self.request, self.film = finished, finished.request, []

    def drop_pictures(self) -> None:
        """Free the memory of film, photo and mask: the files are read again."""
        self.film = []
        if self.request is not None:
            self.request = self.request.with_values(image=self.asked.image, mask=self.asked.mask)


class Registry:
    """The runs that pages show, and the newest of the others, finished or not."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, PageRun] = OrderedDict()

    def show(self, run: PageRun, page: object) -> None:
        """Note the page that shows a run from now on, and forget the surplus of runs that no page shows.

        Addresses with the most runs lose their oldest first, so that nobody's flood displaces the runs of others; so do
        those with the most runs in memory lose the oldest one's pictures.
        """
        run.page = page
        self._runs[run.run_id] = run
        left = [one for one in self._runs.values() if one.page is None]
        while len(left) > REMEMBERED_RUNS:
            del self._runs[left.pop(crowding([one.address for one in left])).run_id]
        held = [one for one in left if one.size]
        while sum(one.size for one in held) > MAX_LEFT_BYTES:
            held.pop(crowding([one.address for one in held])).drop_pictures()

    def forget(self, run: PageRun) -> None:
        """Forget a run that ended without a picture."""
        self._runs.pop(run.run_id, None)

    def get(self, run_id: str) -> PageRun | None:
        """Return the run of that name; None if it was forgotten, or belongs to another server."""
        return self._runs.get(run_id)
