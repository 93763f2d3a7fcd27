"""`Zero`: on a ZeroGPU Space a GPU is lent for one run at a time, to a process that the `spaces` package forks."""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from pathlib import Path

import gradio as gr

from stable_diffusion.request import Request, RequestError

from .backend import ActiveRun, Local, Stream
from .cost import estimate, is_quick
from .errors import errors_as_text
from .events import Event, News, event_of
from .limits import MAX_RUNNING, Limits
from .models import LoadedModels
from .prepare import prepare

ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is such a Space, by the variable that the `spaces` package reads."""
LOADING = 15.0
"""Seconds to load a model in the process with the GPU, a high estimate: ZeroGPU cuts off a call that takes longer than
it asked for, and a call that asks for more waits longer."""
SPEED_UP = 10.0
"""Assumed speed of the GPU relative to this processor, for a model that is slow here; a low estimate."""
LONGEST = 120.0
"""Seconds that a run borrows a GPU for at most."""


class Zero(Local):
    """A `Backend` that borrows a GPU for models that are slow on this processor, and runs the others as `Local` does.

    Only the borrowing process may touch a GPU. So `lent`, with the models on the GPU, is empty here, and each such
    process, which ZeroGPU uses again for a while, loads its own. `models` keeps them on the processor.
    """

    def __init__(self, models: LoadedModels, lent: LoadedModels):
        """Tell the Space that this program borrows a GPU; call this before the page is launched."""
        import spaces

        super().__init__(models)
        self._lent = lent
        self._threads = ThreadPoolExecutor(MAX_RUNNING, "borrower")
        self._stops = tempfile.TemporaryDirectory(prefix="stops-")
        self._borrow = spaces.GPU(self._lent_events, duration=self._seconds)

    @property
    def view_limits(self) -> Limits:
        """The limits of a view's requests, which run here: those of `models` hold for a GPU's pace."""
        return self._lent.limits

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        """See `Backend.stop`. The other process sees a file."""
        super().stop(run_id, pictures=pictures)
        if run_id in self._streams:
            self._stop_file(run_id).touch()

    async def _events(self, run_id: str, stream: Stream, active: ActiveRun) -> AsyncGenerator[News]:
        quick = await asyncio.to_thread(is_quick, active.pipeline)
        events = super()._events(run_id, stream, active) if quick else self._borrowed(run_id, active.request)
        try:
            async with aclosing(events):
                async for news in events:
                    yield news
        finally:
            if self._is_newest(run_id, stream):
                self._stop_file(run_id).unlink(missing_ok=True)

    async def _borrowed(self, run_id: str, request: Request) -> AsyncGenerator[News]:
        events, turn = self._borrow(run_id, request), threading.Lock()

        def take() -> Event | None:
            with turn:
                return next(events, None)

        def leave() -> None:
            with turn:  # a step may be under way whose listener is gone
                events.close()

        loop = asyncio.get_running_loop()
        try:
            # Run in a copy of this context, from which ZeroGPU reads the visitor whose quota pays for the time.
            while (event := await loop.run_in_executor(self._threads, copy_context().run, take)) is not None:
                yield event
        except gr.Error as error:  # ZeroGPU's, if there is no GPU to be had, or the run's
            raise RequestError(str(error.message)) from None
        finally:
            loop.run_in_executor(self._threads, leave)

    def _seconds(self, run_id: str, request: Request) -> int:
        """Return for how long a run borrows a GPU."""
        pipeline = self.models.pipeline(request.model)
        return math.ceil(min(LONGEST, LOADING + estimate(pipeline, request) / SPEED_UP))

    def _lent_events(self, run_id: str, request: Request) -> Generator[Event, None, None]:
        """Yield a run's events, in the process with the GPU: it sees this object as it was when it forked."""
        with errors_as_text():
            pipeline, request = prepare(self._lent, request)
            began, run = time.perf_counter(), pipeline.begin(request)
            start = run.query
            for step in run.steps():
                stopped = step.result is None and self._stop_file(run_id).exists()
                pace = (time.perf_counter() - began) / step.index
                yield event_of(step, request, pipeline.models.name, pace, stopped=stopped, start=start)
                if stopped:
                    return
                start = None

    def _stop_file(self, run_id: str) -> Path:
        return Path(self._stops.name, run_id)
