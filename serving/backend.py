"""`Remote`, a `Backend` whose runs are drawn by replicas in other processes and on other machines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from stable_diffusion.request import Request
from ui.keep.marks import keep_mark
from ui.runs.backend import Local, T, View
from ui.runs.events import Event, News, Started, Waiting
from ui.runs.models import LoadedModels
from ui.runs.visitors import Visitor

log = logging.getLogger("ui.serving")

MAX_REPLICAS_PER_RUN = 3
"""Number of replicas on which one run may begin, so that a run that kills them does not reach all."""


@dataclass
class _Progress:
    """The news that the page has had of a run: enough to begin it again without repeating any."""

    owner: Visitor
    seed: int | None = None
    index: int = 0
    """Index of the last event."""
    repeat: int = 0
    """Index of the last event before the run began again."""
    stopped: bool = False

    @property
    def caught_up(self) -> bool:
        """Whether the replica has reached the last event that the page has had."""
        return self.index > self.repeat or not self.repeat

    def is_new(self, news: News) -> bool:
        """Note the news of a replica and return whether the page has not had it."""
        if isinstance(news, Event):
            self.seed, self.index = news.seed, max(self.index, news.index)
            return news.index > self.repeat or news.images is not None
        if isinstance(news, Started):
            known, self.seed = self.seed is not None, news.request.seed
            return not known
        return not self.index


class Remote:
    """A `Backend` over the handle of a deployment of `Replica`. `models`, in this process, serve the tab Inside."""

    def __init__(self, handle: DeploymentHandle, models: LoadedModels):
        self._handle, self._models, self._here = handle, models, Local(models)
        self._runs: dict[str, _Progress] = {}
        self._visitors = self._here.visitors

    @property
    def status(self) -> str:
        """See `Backend.status`. Always "ready": replicas load their models first, and are replaced when they end."""
        return "ready"

    def inspect(self, view: View[T], requests: Sequence[Request], owner: Visitor) -> AsyncGenerator[Waiting | T]:
        """See `Backend.inspect`. An engine of this process answers: a view's values are for the page alone."""
        return self._here.inspect(view, requests, owner)

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        """See `Backend.stop`; a replica decodes the images in any case."""
        progress = self._runs.get(run_id)
        if progress is not None:
            progress.stopped = True
            self._forward_stop(run_id, progress)

    def _forward_stop(self, run_id: str, progress: _Progress) -> None:
        """Stop the run on its replica, once that has reached the last event that the page has had."""
        if progress.caught_up:
            self._handle.options(session_id=run_id).stop.remote(run_id)

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        """See `Backend.stream`. Photo and mask are read here and sent as pictures.

        If a replica dies the run begins again on another, with the same seed, and yields nothing until it is past its
        last event. RuntimeError if that many replicas in a row die.
        """
        self._models.limits.check(request)
        request = await asyncio.to_thread(read_pictures, request)
        handle = self._handle.options(stream=True, session_id=run_id, multiplexed_model_id=request.model or "").stream
        earlier = self._runs.get(run_id)
        if earlier is None:
            self._visitors.enter(owner)
        progress = self._runs[run_id] = _Progress(owner if earlier is None else earlier.owner)
        try:
            for _ in range(MAX_REPLICAS_PER_RUN):
                progress.repeat = progress.index
                if progress.seed is not None:
                    request = request.with_values(seed=progress.seed)
                stream = handle.remote(run_id, request, owner)
                try:
                    async for news in stream:
                        if progress.is_new(news):
                            yield news
                        if progress.stopped:  # before this replica had the run
                            self._forward_stop(run_id, progress)
                    return
                except RayActorError:
                    log.warning("a replica died at step %d of a run, which begins again on another", progress.index)
                except RayTaskError as error:
                    raise error.cause from None
                finally:
                    stream.cancel()
            raise RuntimeError(f"{MAX_REPLICAS_PER_RUN} replicas died while they drew this: try it again later")
        finally:
            if self._runs.get(run_id) is progress:
                del self._runs[run_id]
                self._visitors.leave(progress.owner)


def read_pictures(request: Request) -> Request:
    """Return the request with photo and mask as pictures; the replica, which has the model, completes and fits them."""
    from stable_diffusion.images import JPEG_SIZE, read_image

    if request.image is None:
        return request
    mask = None if request.mask is None else read_image(request.mask, background="black", name="mask")
    width, height = (
        max(one or 0, least) for one, least in zip((request.width, request.height), JPEG_SIZE, strict=True)
    )
    photo = read_image(request.image, jpeg_size=(width, height))
    keep_mark(request.image, photo)
    return request.with_values(image=photo, mask=mask)
