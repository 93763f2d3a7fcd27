"""Where runs are drawn: `Local`, an engine in this process. Another place is whatever has the same two methods."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stable_diffusion.request import Request

from .events import News, Started, Waiting, dropped_text, event_of
from .limits import MAX_RUNNING, PARKED_RUNS, PARKED_SECONDS, check_numbers, prepare
from .models import ModelHolder

if TYPE_CHECKING:
    from stable_diffusion.batching.engine import Engine
    from stable_diffusion.batching.run_handle import RunHandle
    from stable_diffusion.guidance import Query
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Run

log = logging.getLogger(__name__)

TELL_EVERY = 0.5
"""Seconds after which those who wait hear again where they stand."""


class Backend(Protocol):
    """Draws what the page and programs ask for."""

    @property
    def status(self) -> str:
        """Whether it draws: "ready"; "loading" or "failed", as the first model (see `ModelHolder.status`); or "broken",
        where nothing can be drawn any more until the server is started again."""
        ...

    def stream(self, run_id: str, settings: dict[str, Any], owner: str) -> AsyncGenerator[News]:
        """News of the run of that name: Waiting and Started while it is not there yet, then an Event for every step.

        Closing the generator frees the run's place within a step. Asked for again by the same name, it goes on with
        the step after the last one told, or begins again from its seed where that is forgotten.

        settings are by the names in `Request`, None for what suits the model; owner is the visitor, for fair turns.
        Raises ValueError, naming the argument, where the run can't be made.
        """
        ...

    def stop(self, run_id: str) -> None:
        """End a run: with the picture that it has at its next step, or without one where it has no step yet."""
        ...


@dataclass
class Drawn:
    """A run under way or parked: what does not fit into a generator that may be closed and asked for again."""

    pipeline: Pipeline
    request: Request
    run: Run | None = None
    index: int = 0
    """The last step told, of `total`."""
    total: int = 0
    start: Query | None = None
    """What the run first asks, until that was told."""

    def begin(self) -> Run:
        """The run where it was left; one that went on to its end while nobody looked begins again."""
        if self.run is None or self.run.query is None:
            self.run, self.index = self.pipeline.begin(self.request), 0
            self.start = self.run.query
        return self.run


class Local:
    """An engine in this process draws all runs, with the models of a holder."""

    def __init__(self, holder: ModelHolder, *, max_running: int = MAX_RUNNING):
        """Within the limits of the holder; see `Engine` for max_running."""
        self.holder, self._max_running = holder, max_running
        self._engine: Engine | None = None
        self._starting = threading.Lock()
        self._parked: OrderedDict[str, tuple[Drawn, float]] = OrderedDict()  # with when; the last one is at its end
        self._going: dict[str, RunHandle | None] = {}  # None until the engine is asked
        self._stopped: set[str] = set()
        self._owners: Counter[str] = Counter()

    @property
    def status(self) -> str:
        """See `Backend.status`; broken is an engine that ended by a fault of its own."""
        return "broken" if self._engine is not None and self._engine.closed else self.holder.status

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`."""
        if run_id in self._going:
            self._stopped.add(run_id)
            handle = self._going[run_id]
            if handle is not None and handle.position:
                handle.close()

    async def stream(self, run_id: str, settings: dict[str, Any], owner: str) -> AsyncGenerator[News]:
        """See `Backend.stream`."""
        most = self.holder.limits.max_visitor_runs
        if self._owners[owner] >= most:
            raise ValueError(f"{most} of your runs are under way already: wait for one to end, or stop it")
        drawn = self._unpark(run_id)
        self._going[run_id] = None
        self._owners[owner] += 1
        try:
            if drawn is None:
                check_numbers(self.holder.limits, settings)  # before anybody waits for the model
                async for text, _ in self.holder.wait(settings.get("model")):
                    if run_id in self._stopped:
                        return
                    yield Waiting(f"{text}…")
                pipeline, request = await asyncio.to_thread(prepare, self.holder, settings)
                drawn = Drawn(pipeline, request.seeded())
                yield Started(drawn.request, dropped_text(pipeline, drawn.request))
            async with aclosing(self._draw(run_id, drawn, owner)) as events:
                async for event in events:
                    yield event
        finally:
            self._owners[owner] -= 1
            self._owners += Counter()  # without those who have none
            self._going.pop(run_id, None)
            self._stopped.discard(run_id)

    async def _draw(self, run_id: str, drawn: Drawn, owner: str) -> AsyncGenerator[News]:
        engine = await asyncio.to_thread(self._started, drawn.pipeline)
        handle = self._going[run_id] = engine.submit(drawn.begin, owner)
        began, first, told = time.perf_counter(), drawn.index, "stopped"
        try:
            async with aclosing(handle.updates(TELL_EVERY)) as steps:
                async for step in steps:
                    if step is None:
                        if place := handle.position:
                            yield in_line(place, handle.expected_wait)
                        continue
                    stopped = run_id in self._stopped and step.result is None
                    drawn.index, drawn.total = max(drawn.index, step.index), step.total
                    pace = (time.perf_counter() - began) / max(1, step.index - first)
                    name = drawn.pipeline.models.name
                    start, drawn.start = drawn.start, None
                    yield await asyncio.to_thread(
                        event_of, step, drawn.request, name, pace, stopped=stopped, start=start
                    )
                    if stopped:
                        return
            told = "finished" if drawn.run is not None and drawn.run.query is None else told
        except (GeneratorExit, asyncio.CancelledError):
            self._park(run_id, drawn)
            raise
        finally:
            handle.close()
            log.info("%s at step %d of %d", told, drawn.index, drawn.total)

    def _started(self, pipeline: Pipeline) -> Engine:
        """The engine, which starts with the first run; all models are on the device of the first."""
        from stable_diffusion.batching.engine import Engine
        from stable_diffusion.batching.preview_worker import PreviewWorker

        with self._starting:
            if self._engine is None:
                device = pipeline.models.unet.conv_in.weight.device
                limits, most = self.holder.limits, self._max_running
                worker = PreviewWorker(device, share=limits.preview_share if device.type == "cpu" else None)
                self._engine = Engine(device, preview_worker=worker, max_running=most, max_waiting=limits.max_waiting)
            return self._engine

    def _park(self, run_id: str, drawn: Drawn) -> None:
        """Keep a run that its listener left: its latents are small, and it may be asked for again."""
        self._parked[run_id] = drawn, time.monotonic()
        while len(self._parked) > PARKED_RUNS:
            self._parked.popitem(last=False)

    def _unpark(self, run_id: str) -> Drawn | None:
        """A parked run, if it is there still; those that have waited long are forgotten."""
        oldest = time.monotonic() - PARKED_SECONDS
        while self._parked and next(iter(self._parked.values()))[1] < oldest:
            self._parked.popitem(last=False)
        drawn, _ = self._parked.pop(run_id, (None, 0.0))
        return drawn


def in_line(position: int, seconds: float) -> Waiting:
    """What is said to whoever waits for a place: "3rd in line, about 6 s"."""
    about = f", about {math.ceil(seconds)} s" if math.isfinite(seconds) else ""
    return Waiting(f"{ordinal(position)} in line{about}", position, seconds if math.isfinite(seconds) else None)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
