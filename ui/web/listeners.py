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
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio.queueing import Queue
    from gradio.routes import App
    from gradio.server_messages import EventMessage

log = logging.getLogger(__name__)

CHECKS = 6
"""Number of times that messages are checked within the time that they may wait."""


def lifespan_with(
    unheard: float, sweep: Callable[[], Coroutine[None, None, None]]
) -> Callable[[App], AbstractAsyncContextManager[None]]:
    """Return a server's lifespan that runs `sweep`, and ends runs whose messages wait longer than `unheard` seconds."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(end_unheard(queue_of(app), unheard)), asyncio.create_task(sweep())]
        yield
        for task in tasks:
            task.cancel()

    return lifespan


async def end_unheard(queue: Queue, seconds: float) -> None:
    """End runs whose oldest unread message is older than `seconds`, and forget sessions that wait for nothing."""
    oldest: dict[str, tuple[EventMessage, float]] = {}  # session -> its first unread message, and since when it is that
    idle: set[str] = set()  # sessions that waited for nothing at the last check: their stream may be at its end
    was_busy = False
    while True:
        await asyncio.sleep(seconds / CHECKS)
        busy = any(queue.active_jobs)
        if was_busy and not busy:
            await asyncio.to_thread(release_memory)
        was_busy = busy
        now, before, oldest = time.monotonic(), oldest, {}
        idle_before, idle = idle, set()
        for session, messages in list(queue.pending_messages_per_session.items()):
            unread = first_unread(messages)
            if unread is None:
                if not queue.pending_event_ids_session.get(session):
                    idle.add(session)
                    if session in idle_before:
                        forget(queue, session)
                continue
            first, since = before.get(session, (None, now))
            oldest[session] = unread, since if first is unread else now
            if now - oldest[session][1] > seconds:
                log.info("nobody has listened for %g s: the run ends", seconds)
                await queue.clean_events(session_hash=session)  # as Gradio does when a listener leaves
                forget(queue, session)


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
