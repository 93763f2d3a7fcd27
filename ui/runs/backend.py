"""Define `Backend`, the protocol of a place that draws runs, and `Local`, an engine in this process."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from stable_diffusion.request import Request

from .events import News, Started, Waiting, dropped_text, event_of
from .limits import MAX_RUNNING, PARKED_RUNS, PARKED_SECONDS, Limits
from .models import LoadedModels
from .prepare import prepare, prepare_all
from .visitors import Account, Visitor, Visitors, crowding

if TYPE_CHECKING:
    from stable_diffusion.batching.engine import Engine
    from stable_diffusion.batching.run_handle import RunHandle
    from stable_diffusion.guidance import Query
    from stable_diffusion.inspection import Inquiry, Inspection
    from stable_diffusion.model_loader import Models
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Run

log = logging.getLogger(__name__)

REPORT_EVERY = 0.5
"""Seconds between two reports of a run's place in the queue."""

T = TypeVar("T")
View = Callable[["Pipeline", "Sequence[Request]", Callable[[T], None]], "Inquiry[None]"]
"""A view of a run, or of several with the same model: it is given the prepared requests, and calls the function with
each of its values."""


class Backend(Protocol):
    """Runs the requests of the page and of programs."""

    @property
    def status(self) -> str:
        """State of the first model, "ready", "loading" or "failed"; or "broken" if the server must be restarted."""
        ...

    def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        """Yield the news of a run: `Waiting` and `Started`, then an `Event` for each step.

        Closing the generator frees the run's slot within a step. The next call with the same run_id continues after
        the last event, or begins again with the request's seed if the run was forgotten. A call for a run under way
        takes it over, in its place: the earlier generator's end does not touch it any more. owner: the visitor, for
        turns that are fair. Raises `RequestError`, naming the argument, if the request can't be served.
        """
        ...

    def inspect(self, view: View[T], requests: Sequence[Request], owner: Visitor) -> AsyncGenerator[Waiting | T]:
        """Yield the values of a view, and `Waiting` before them: its questions take turns with everybody's runs.

        It is limited as one run of its owner that takes the seconds of all requests. Closing the generator ends it
        within a question. Raises `RequestError`, naming the argument, if a request can't be served.
        """
        ...

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        """End a run: with its images so far at its next step, or without images before its first step.

        pictures: whether anybody still wants the images; if not, the run ends at once.
        """
        ...


@dataclass
class ActiveRun:
    """A run under way or parked: the state that outlives a stream which is closed and asked for again."""

    pipeline: Pipeline
    request: Request
    models: Models | None = None
    """The models with the request's LoRA files, which stay merged for as long; None while the run is parked."""
    run: Run | None = None
    index: int = 0
    """Index of the last event, of `total`."""
    total: int = 0
    start: Query | None = None
    """The run's first query, until its first event."""

    def merge(self) -> ActiveRun:
        """Merge the request's LoRA files, for `begin`, and return this. It takes seconds."""
        self.models = self.pipeline.models_for(self.request)
        return self

    def begin(self) -> Run:
        """Return the run where it was left; a run that ended while parked begins again."""
        if self.run is None or self.run.is_over:
            self.run, self.index = self.pipeline.begin(self.request), 0
            self.start = self.run.query
        elif self.run.conditioning is None:
            self.run = self.run.conditioned(self.pipeline.condition(self.request))
        run = self.run
        if self.models is None:  # parked meanwhile, by another thread
            self.park()
        return run

    def park(self) -> None:
        """Let go of merged weights, keys and values, which are large: the request gives them again."""
        self.models = None
        if self.start is not None:  # nobody has seen a step: the run begins again, and equally
            self.run = self.start = None
        elif self.run is not None:
            self.run = self.run.conditioned(None)


@dataclass
class Stream:
    """A run with a reader: the state that a newer stream of the same run takes over."""

    owner: Visitor
    account: Account
    active: ActiveRun | None = None
    """The run, once it is prepared."""
    handle: RunHandle | None = None
    """The run in the engine, once that has it."""
    stopped: bool = False
    wanted: bool = True
    """Whether anybody still wants the images."""


class Local:
    """A `Backend`: an engine in this process runs all requests."""

    def __init__(self, models: LoadedModels, *, max_running: int = MAX_RUNNING):
        """max_running: number of slots of the engine."""
        self.models, self._max_running = models, max_running
        self._engine: Engine | None = None
        self._starting = threading.Lock()
        self._parked: OrderedDict[str, tuple[ActiveRun, str, float]] = OrderedDict()  # with address and time, in order
        self._streams: dict[str, Stream] = {}
        self.visitors = Visitors(models.limits)
        # Pools of their own: what is slow must not delay the pictures of runs under way, nor those without LoRA files.
        self._preparing = ThreadPoolExecutor(max_running, "prepare")
        self._merging = ThreadPoolExecutor(1, "merge")
        self._stopping = ThreadPoolExecutor(1, "stop")  # decodes the pictures of stopped runs, one run at a time

    @property
    def view_limits(self) -> Limits:
        """The limits of a view's requests."""
        return self.models.limits

    @property
    def status(self) -> str:
        """See `Backend.status`; "broken" is an engine that ended by an error of its own."""
        return "broken" if self._engine is not None and self._engine.closed else self.models.status

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        """See `Backend.stop`."""
        stream = self._streams.get(run_id)
        if stream is not None:
            stream.stopped, stream.wanted = True, pictures
            if stream.handle is not None and (stream.handle.position or not pictures):
                stream.handle.close()

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        """See `Backend.stream`."""
        earlier = self._streams.get(run_id)
        if earlier is None:
            stream = Stream(owner, self.visitors.enter(owner), self._unpark(run_id))
        else:
            stream = replace(earlier)
        self._streams[run_id] = stream
        try:
            active = stream.active
            if active is None:
                self.models.limits.check(request)  # before anybody waits for the model
                async for text, _ in self.models.wait(request.model):
                    if stream.stopped:
                        return
                    yield Waiting(f"{text}…")
                loop = asyncio.get_running_loop()
                prepared, dropped = await loop.run_in_executor(self._pool(request), self._prepare, request)
                active = stream.active = prepared
                yield Started(prepared.request, dropped)
            elif active.models is None:  # it was parked
                await asyncio.get_running_loop().run_in_executor(self._pool(active.request), active.merge)
            async with aclosing(self._events(run_id, stream, active)) as events:
                async for event in events:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            if self._is_newest(run_id, stream) and stream.active is not None and not stream.stopped:
                self._park(run_id, stream.active, stream.owner.address)
            raise
        finally:
            if self._is_newest(run_id, stream):
                del self._streams[run_id]
                self.visitors.leave(stream.owner)

    def _is_newest(self, run_id: str, stream: Stream) -> bool:
        """Whether no newer stream has taken the run over."""
        return self._streams.get(run_id) is stream

    def _pool(self, request: Request) -> ThreadPoolExecutor:
        """Return the threads that prepare a request."""
        return self._merging if request.loras else self._preparing

    async def inspect(self, view: View[T], requests: Sequence[Request], owner: Visitor) -> AsyncGenerator[Waiting | T]:
        """See `Backend.inspect`."""
        account = self.visitors.enter(owner)
        try:
            for request in requests:
                self.models.limits.check(request)  # before anybody waits for the model
            async for text, _ in self.models.wait(requests[0].model):
                yield Waiting(f"{text}…")
            pool = self._pool(requests[0])
            loop, news = asyncio.get_running_loop(), asyncio.Queue[Waiting | T | None]()

            def show(value: T) -> None:
                loop.call_soon_threadsafe(news.put_nowait, value)

            pipeline, begin = await loop.run_in_executor(pool, self._begin_view, view, requests, show)
            engine = await asyncio.to_thread(self._start_engine, pipeline)
            handle = engine.submit(begin, account)

            async def follow() -> None:
                async for _ in handle.updates(REPORT_EVERY):
                    if position := handle.position:
                        news.put_nowait(in_queue(position, handle.expected_wait))

            following = asyncio.create_task(follow())
            following.add_done_callback(lambda _: news.put_nowait(None))
            try:
                while (one := await news.get()) is not None:
                    yield one
                await following
            finally:
                handle.close()
                following.cancel()
        finally:
            self.visitors.leave(owner)

    def _begin_view(
        self, view: View[T], requests: Sequence[Request], show: Callable[[T], None]
    ) -> tuple[Pipeline, Callable[[], Inspection]]:
        """Prepare the requests of a view; return their model, and a function that begins the view for the engine."""
        from stable_diffusion.inspection import Inspection

        pipeline, prepared = prepare_all(self.models, requests, self.view_limits)
        evaluations = sum(pipeline.plan(request).evaluations for request in prepared)
        inquiry = view(pipeline, prepared, show)
        merged = pipeline.models_for(prepared[0])  # held until the view begins, so that its LoRA files stay merged
        return pipeline, lambda held=merged: Inspection(inquiry, evaluations)

    def _prepare(self, request: Request) -> tuple[ActiveRun, dict[str, str]]:
        pipeline, request = prepare(self.models, request)
        return ActiveRun(pipeline, request.seeded()).merge(), dropped_text(pipeline, request)

    async def _events(self, run_id: str, stream: Stream, active: ActiveRun) -> AsyncGenerator[News]:
        engine = await asyncio.to_thread(self._start_engine, active.pipeline)
        if not self._is_newest(run_id, stream):
            return
        if stream.handle is None:
            stream.handle = engine.submit(active.begin, stream.account)
        handle = stream.handle
        began, first, outcome = time.perf_counter(), active.index, "stopped"
        loop, told = asyncio.get_running_loop(), None
        try:
            async with aclosing(handle.updates(REPORT_EVERY)) as steps:
                async for step in steps:
                    if step is None:
                        news = in_queue(handle.position, handle.expected_wait)
                        if news.position and news != told:
                            yield news
                        told = news
                        continue
                    if not stream.wanted:  # steps from before the end may still come
                        return
                    stopped = stream.stopped and step.result is None
                    active.index, active.total = max(active.index, step.index), step.total
                    pace = (time.perf_counter() - began) / max(1, step.index - first)
                    name = active.pipeline.models.name
                    start, active.start = active.start, None
                    event = partial(event_of, step, active.request, name, pace, stopped=stopped, start=start)
                    yield await loop.run_in_executor(self._stopping if stopped else None, event)
                    if stopped:
                        return
            outcome = "finished" if active.run is not None and active.run.is_over else outcome
        finally:
            if self._is_newest(run_id, stream):
                handle.close()
                log.info("%s at step %d of %d", outcome, active.index, active.total)

    def _start_engine(self, pipeline: Pipeline) -> Engine:
        """Return the engine, which starts with the first run; all models are on the device of the first."""
        from stable_diffusion.batching.engine import Engine
        from stable_diffusion.batching.preview_worker import PreviewWorker

        with self._starting:
            if self._engine is None:
                device = pipeline.models.unet.conv_in.weight.device
                limits, most = self.models.limits, self._max_running
                worker = PreviewWorker(device, share=limits.preview_share if device.type == "cpu" else None)
                self._engine = Engine(device, preview_worker=worker, max_running=most, max_waiting=limits.max_waiting)
            return self._engine

    def _park(self, run_id: str, active: ActiveRun, address: str) -> None:
        """Keep a run whose page is gone, for the page may be loaded again: its request and latents."""
        active.park()
        self._parked[run_id] = active, address, time.monotonic()
        if len(self._parked) > PARKED_RUNS:
            surplus = crowding([address for _, address, _ in self._parked.values()])
            del self._parked[list(self._parked)[surplus]]

    def _unpark(self, run_id: str) -> ActiveRun | None:
        """Return a parked run that has not expired."""
        oldest = time.monotonic() - PARKED_SECONDS
        while self._parked and next(iter(self._parked.values()))[2] < oldest:
            self._parked.popitem(last=False)
        return self._parked.pop(run_id, (None,))[0]


def in_queue(position: int, seconds: float) -> Waiting:
    """Return the news of a run in the queue: "3rd in line, about 6 s"."""
    about = f", about {math.ceil(seconds)} s" if math.isfinite(seconds) else ""
    return Waiting(f"{ordinal(position)} in line{about}", position, seconds if math.isfinite(seconds) else None)


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
