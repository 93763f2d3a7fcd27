"""What visits leave: a run that nobody listens to ends, and what it had to say is forgotten; free memory is given back.

Gradio ends a run when its listener leaves, but one that never had a listener goes on, and keeps its messages, a preview
for every step, until 2,000 other sessions have come.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from ..keep.files import HOUR, sweep

if TYPE_CHECKING:
    from gradio.queueing import Queue
    from gradio.routes import App
    from gradio.server_messages import EventMessage

log = logging.getLogger(__name__)

LOOKS = 6
"""How often the messages are looked at in the time that they may wait."""


def watched(seconds: float) -> Callable[[App], AbstractAsyncContextManager[None]]:
    """The lifespan of a server that ends what nobody has listened to for `seconds`, and removes old files."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(watch(line_of(app), seconds)), asyncio.create_task(swept())]
        yield
        for task in tasks:
            task.cancel()

    return lifespan


async def swept() -> None:
    """Remove what visitors kept a day ago, each hour."""
    while True:
        await asyncio.to_thread(sweep)
        await asyncio.sleep(HOUR)


async def watch(queue: Queue, seconds: float) -> None:
    """End runs whose oldest unread message is older than `seconds`, and forget sessions that wait for nothing."""
    oldest: dict[str, tuple[EventMessage, float]] = {}  # session -> its first unread message, and since when it is that
    silent: set[str] = set()  # sessions that waited for nothing the last time: a stream may be at its last message
    worked = False
    while True:
        await asyncio.sleep(seconds / LOOKS)
        works = any(queue.active_jobs)
        if worked and not works:
            await asyncio.to_thread(give_back)
        worked = works
        now, before, oldest = time.monotonic(), oldest, {}
        quiet, silent = silent, set()
        for session, messages in list(queue.pending_messages_per_session.items()):
            unread = first_of(messages)
            if unread is None:
                if not queue.pending_event_ids_session.get(session):
                    silent.add(session)
                    if session in quiet:
                        forget(queue, session)
                continue
            first, since = before.get(session, (None, now))
            oldest[session] = unread, since if first is unread else now
            if now - oldest[session][1] > seconds:
                log.info("nobody has listened for %g s: the run ends", seconds)
                await queue.clean_events(session_hash=session)  # what Gradio does when a listener leaves
                forget(queue, session)


def line_of(app: App) -> Queue:
    """The line of events of a server. Gradio 6.31 names it by a private attribute alone."""
    return app.get_blocks()._queue


def first_of(messages: asyncio.Queue[EventMessage]) -> EventMessage | None:
    """The first unread message, which stays there. In public, asyncio has no way to look without taking.

    How many there are would not do: of a slow reader's, as many come as go.
    """
    return messages._queue[0] if messages.qsize() else None  # type: ignore[attr-defined]


def forget(queue: Queue, session: str) -> None:
    """Drop what the line keeps of a session; its next event makes it anew."""
    queue.pending_messages_per_session.pop(session, None)
    queue.pending_event_ids_session.pop(session, None)


def give_back() -> None:
    """Return freed memory to the system, where the C library can: glibc keeps what each thread has freed, for ever.

    Runs go on in many threads, each with megabytes of its own: hundreds after a day. (malloc_trim(3))
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
