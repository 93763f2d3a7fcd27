"""`Zero`: on a ZeroGPU Space a GPU is lent for one run at a time, to a process that the `spaces` package forks."""

from __future__ import annotations

import asyncio
import dataclasses
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

from stable_diffusion.request import Request

from ..stage.sketch import is_quick
from .backend import Drawn, Local
from .errors import told_to_programs
from .events import Event, News, event_of
from .limits import MAX_RUNNING, prepare, work_of
from .models import ModelHolder

ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is such a Space, by the variable that the package itself goes by."""
TO_LOAD, A_STEP = 15.0, 0.1
"""Seconds to have a GPU for: to load the model, and for a step of one picture of its size. Estimated generously, not
measured: who takes longer is cut off, and who asks for more waits longer for a GPU."""


class Zero(Local):
    """A `Backend` that borrows a GPU for what is slow on this processor; the rest is drawn as `Local` draws it.

    No GPU may be touched outside the borrower's process. So `lent`, with the models on the GPU, is empty here, and each
    such process, which ZeroGPU uses again for a while, loads its own. `holder` keeps them on the processor.
    """

    def __init__(self, holder: ModelHolder, lent: ModelHolder):
        """To be called before the page is launched: the Space is told then that something borrows."""
        import spaces

        super().__init__(holder)
        self._lent = lent
        self._threads = ThreadPoolExecutor(MAX_RUNNING, "borrower")
        self._stops = tempfile.TemporaryDirectory(prefix="stops-")
        self._borrow = spaces.GPU(self._events, duration=self._seconds)

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`. A file is what the other process sees."""
        super().stop(run_id)
        if run_id in self._going:
            self._stop_of(run_id).touch()

    async def _draw(self, run_id: str, drawn: Drawn, owner: str) -> AsyncGenerator[News]:
        quick = await asyncio.to_thread(is_quick, drawn.pipeline)
        drawing = super()._draw(run_id, drawn, owner) if quick else self._draw_there(run_id, drawn.request)
        try:
            async with aclosing(drawing) as told:
                async for news in told:
                    yield news
        finally:
            self._stop_of(run_id).unlink(missing_ok=True)

    async def _draw_there(self, run_id: str, request: Request) -> AsyncGenerator[News]:
        events, turn = self._borrow(run_id, request), threading.Lock()

        def take() -> Event | None:
            with turn:
                return next(events, None)

        def leave() -> None:
            with turn:  # a step may be under way, whose listener is gone
                events.close()

        loop = asyncio.get_running_loop()
        try:
            # In this context, by which ZeroGPU knows whose time it is.
            while (event := await loop.run_in_executor(self._threads, copy_context().run, take)) is not None:
                yield event
        except gr.Error as error:  # of ZeroGPU, that there is no GPU to be had, or of the run
            raise ValueError(str(error.message)) from None
        finally:
            loop.run_in_executor(self._threads, leave)

    def _seconds(self, run_id: str, request: Request) -> int:
        return round(TO_LOAD + A_STEP * work_of(self.holder, request))

    def _events(self, run_id: str, request: Request) -> Generator[Event, None, None]:
        """What the process with the GPU does: the run's events. It knows of this one what was there when it forked."""
        with told_to_programs():
            pipeline, request = prepare(self._lent, dataclasses.asdict(request))
            began, run = time.perf_counter(), pipeline.begin(request)
            start = run.query
            for step in run.steps():
                stopped = step.result is None and self._stop_of(run_id).exists()
                pace = (time.perf_counter() - began) / step.index
                yield event_of(step, request, pipeline.models.name, pace, stopped=stopped, start=start)
                if stopped:
                    return
                start = None

    def _stop_of(self, run_id: str) -> Path:
        return Path(self._stops.name, run_id)
