"""End runs that nobody listens to, forget their messages, and return free memory to the system.

Gradio ends a run when its listener leaves. A run that never had a listener goes on, and its messages, with a preview of
every step, stay until 2,000 other sessions have come.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from gradio.server_messages import EstimationMessage, ProcessStartsMessage

if TYPE_CHECKING:
    from gradio.queueing import Queue
    from gradio.routes import App
    from gradio.server_messages import EventMessage

log = logging.getLogger(__name__)

CHECKS = 6
"""Number of times that messages are checked within the time that they may wait."""
NEVER_HEARD = 10.0
"""Seconds for which a run goes on that has not had any listener: a page listens within a moment."""
FIRST_MESSAGES = (EstimationMessage, ProcessStartsMessage)
"""What Gradio says of an event before its first answer."""
HOUR = 3600


def lifespan_with(unheard: float, sweep: Callable[[], None]) -> Callable[[App], AbstractAsyncContextManager[None]]:
    """Return a server's lifespan that sweeps hourly, and ends runs whose messages wait longer than `unheard` seconds.

    A run without any listener so far ends after `NEVER_HEARD` seconds.
    """

    async def sweep_in_thread() -> None:
        await asyncio.to_thread(sweep)

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        listeners = Listeners(queue_of(app), unheard)
        tasks = [
            asyncio.create_task(repeat(listeners.check, listeners.every)),
            asyncio.create_task(repeat(sweep_in_thread, HOUR)),
        ]
        yield
        for task in tasks:
            task.cancel()

    return lifespan


async def repeat(job: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Run a job now and again after each pause of that many seconds; its exceptions are logged and do not end it."""
    while True:
        try:
            await job()
        except Exception:
            log.exception("%s failed, and runs again in %g s", job.__qualname__, seconds)
        await asyncio.sleep(seconds)


class Listeners:
    """A watch over the queue of a server's events, whose runs end without listeners.

    every: seconds between two checks.
    """

    def __init__(self, queue: Queue, seconds: float):
        """seconds: how long a message may wait for a listener who was there before."""
        self._queue, self._seconds = queue, seconds
        self.every = min(seconds, NEVER_HEARD) / CHECKS
        self._oldest: dict[str, tuple[EventMessage, float]] = {}
        """By session, its first unread message, and since when it is that."""
        self._idle: set[str] = set()
        """Sessions that waited for nothing at the last check: their stream may be at its end."""
        self._was_busy = False

    async def check(self) -> None:
        """End runs whose oldest unread message has waited too long, and forget sessions that wait for nothing."""
        busy = any(self._queue.active_jobs)
        if self._was_busy and not busy:
            await asyncio.to_thread(release_memory)
        self._was_busy = busy
        now, before, self._oldest = time.monotonic(), self._oldest, {}
        idle_before, self._idle = self._idle, set()
        for session, messages in list(self._queue.pending_messages_per_session.items()):
            unread = first_unread(messages)
            if unread is None:
                if not self._queue.pending_event_ids_session.get(session):
                    self._idle.add(session)
                    if session in idle_before:
                        forget(self._queue, session)
                continue
            first, since = before.get(session, (None, now))
            self._oldest[session] = unread, since if first is unread else now
            most = min(self._seconds, NEVER_HEARD) if isinstance(unread, FIRST_MESSAGES) else self._seconds
            if now - self._oldest[session][1] > most:
                log.info("nobody has listened for %g s: the run ends", most)
                await self._queue.clean_events(session_hash=session)  # as Gradio does when a listener leaves
                forget(self._queue, session)


def queue_of(app: App) -> Queue:
    """Return the queue of a server's events. In Gradio 6.31 only a private attribute leads to it."""
    return app.get_blocks()._queue


def first_unread(messages: asyncio.Queue[EventMessage]) -> EventMessage | None:
    """Return the first unread message without taking it; asyncio has no public way to do so.

    The number of messages would not do: for a slow reader it stays constant.
    """
    return messages._queue[0] if messages.qsize() else None  # type: ignore[attr-defined]


def forget(queue: Queue, session: str) -> None:
    """Drop the messages of a session; its next event begins it again."""
    queue.pending_messages_per_session.pop(session, None)
    queue.pending_event_ids_session.pop(session, None)


def release_memory() -> None:
    """Return freed memory to the system (malloc_trim(3)): glibc keeps what each thread has freed.

    Runs use many threads, and each keeps megabytes of freed memory: hundreds in all after a day.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
