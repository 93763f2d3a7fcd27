"""The runs of all visitors, by names that nobody can guess: a page that was loaded again asks for its own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from stable_diffusion.request import Request

from ..keep.history import Kept
from ..keep.link import to_query
from ..stage.live import Message, new_run
from .limits import REMEMBERED_RUNS

INDEX = itemgetter("index")


@dataclass
class Watched:
    """A run that a page has asked for: what was asked, and what came of it so far."""

    kind: str
    settings: dict[str, Any]
    run_id: str = field(default_factory=new_run)
    request: Request | None = None
    """What is drawn; None before that is known."""
    film: list[Message] = field(default_factory=list)
    done: Kept | None = None
    """What is left of it when it is over."""
    stopped: bool = False
    """Whether Stop was pressed, which may be before there is anything to stop."""
    page: object = None
    """The page that watches, while it goes on; another one that asks for the run takes over."""

    @property
    def link(self) -> str:
        """The query of a link that draws it again; empty while its request is not known."""
        return "" if self.request is None else to_query(self.request)

    def add(self, step: Message) -> Message:
        """Put a step into the film, in order: a picture may come after later steps, and then takes its step's place."""
        if step["start"] is not None:
            self.add(step["start"])
        others = (one for one in self.film if one["index"] != step["index"])
        self.film = sorted([*others, {**step, "start": None}], key=INDEX)
        return step


class Runs:
    """The runs that were asked for last, over or not. Films of runs that are over are files."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Watched] = OrderedDict()

    def add(self, kind: str, settings: dict[str, Any]) -> Watched:
        """A new run, under a name of its own."""
        run = Watched(kind, settings)
        self._runs[run.run_id] = run
        while len(self._runs) > REMEMBERED_RUNS:
            self._runs.popitem(last=False)
        return run

    def get(self, run_id: str) -> Watched | None:
        """The run of that name, or None where it was forgotten, or is another server's."""
        return self._runs.get(run_id)
