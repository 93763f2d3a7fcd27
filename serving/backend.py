"""`Remote`: runs are drawn by replicas, in other processes and on other machines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from ui.runs.events import Event, News, Started

from .replica import PICTURES, Files

log = logging.getLogger("ui.serving")

LIVES = 3
"""On how many replicas a run may begin: one that they die of does not get to all of them."""


@dataclass
class _Heard:
    """What the page heard of a run: enough to begin it again, and to tell nothing twice."""

    seed: int | None = None
    index: int = 0
    """The last step told."""
    behind: int = 0
    """The last step told before the run began again."""
    stopped: bool = False

    @property
    def caught_up(self) -> bool:
        """Whether the run is where the page believes it to be."""
        return self.index > self.behind or not self.behind

    def is_new(self, news: News) -> bool:
        """Note what a replica tells; whether the page has not heard it."""
        if isinstance(news, Event):
            self.seed, self.index = news.seed, max(self.index, news.index)
            return news.index > self.behind or news.images is not None
        if isinstance(news, Started):
            known, self.seed = self.seed is not None, news.request.seed
            return not known
        return not self.index


class Remote:
    """A `Backend` over the handle of a deployment of `Replica`."""

    def __init__(self, handle: DeploymentHandle):
        self._handle = handle
        self._runs: dict[str, _Heard] = {}

    @property
    def status(self) -> str:
        """See `Backend.status`: always ready, for replicas load their models before they are asked, and those that end
        are replaced."""
        return "ready"

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`."""
        heard = self._runs.get(run_id)
        if heard is not None:
            heard.stopped = True
            self._pass_stop_on(run_id, heard)

    def _pass_stop_on(self, run_id: str, heard: _Heard) -> None:
        """Unless the run is to be stopped later: where it has come again to what the page saw."""
        if heard.caught_up:
            self._handle.options(session_id=run_id).stop.remote(run_id)

    async def stream(self, run_id: str, settings: dict[str, Any], owner: str) -> AsyncGenerator[News]:
        """See `Backend.stream`. RuntimeError where as many replicas in a row died as a run has lives.

        A run whose replica dies begins again on another, with the same seed, and is silent until it is past the last
        step that was told.
        """
        files = await asyncio.to_thread(read_files, settings)
        handle = self._handle.options(
            stream=True, session_id=run_id, multiplexed_model_id=settings.get("model") or ""
        ).stream
        image, mask = settings.get("image"), settings.get("mask")
        heard = self._runs[run_id] = _Heard()
        try:
            for _ in range(LIVES):
                heard.behind = heard.index
                if heard.seed is not None:
                    settings = {**settings, "seed": heard.seed}
                told = handle.remote(run_id, {**settings, **dict.fromkeys(files)}, files, owner)
                try:
                    async for news in told:
                        if isinstance(news, Started):
                            news = replace(news, request=replace(news.request, image=image, mask=mask))
                        if heard.is_new(news):
                            yield news
                        if heard.stopped:  # before this replica had the run
                            self._pass_stop_on(run_id, heard)
                    return
                except RayActorError:
                    log.warning("a replica died at step %d of a run, which begins again on another", heard.index)
                except RayTaskError as error:
                    raise error.cause from None
                finally:
                    told.cancel()
            raise RuntimeError(f"{LIVES} replicas died while they drew this: try it again later")
        finally:
            if self._runs.get(run_id) is heard:
                del self._runs[run_id]


def read_files(settings: dict[str, Any]) -> Files:
    """Name and content of the pictures that settings name; one that is not there is left for the replica to refuse."""
    paths = {name: Path(settings[name]) for name in PICTURES if settings.get(name) is not None}
    return {name: (path.name, path.read_bytes()) for name, path in paths.items() if path.is_file()}
