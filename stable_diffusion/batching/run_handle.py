"""What a visitor holds of a run: its newest steps, its place in the line, and the way to leave."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..pipeline import Step

KEPT = 4
"""How many steps wait for their readers. A reader who is late for a moment loses none; pictures take memory."""


class Line(Protocol):
    """Where tickets wait."""

    def position(self, ticket: Ticket) -> int:
        """See `Ticket.position`."""
        ...

    def expected_wait(self, ticket: Ticket) -> float:
        """See `Ticket.expected_wait`."""
        ...


class Ticket:
    """A run that an engine has been asked for, as one visitor sees it: iterate over its steps, close it to leave.

    The newest steps are kept: whoever reads slowly misses some, but never the last. A step is told as soon as it was
    taken; where its pictures are painted later it is told again, with them, and may then be older than the one before.
    Any number of threads may read, each for itself, from any time on. A run that nobody reads goes on; one that is
    closed gives its place back at the engine's next turn.
    """

    def __init__(self, owner: Hashable, line: Line):
        self.owner = owner
        self._line = line
        self._news = threading.Condition()
        self._wake: list[Callable[[], None]] = []
        self._told = 0
        self._kept: deque[tuple[int, Step]] = deque(maxlen=KEPT)  # with their numbers among all that was told
        self._painted = 0  # the index of the newest step that had pictures
        self._over = False
        self._error: Exception | None = None

    @property
    def position(self) -> int:
        """The place in line: 1 is next, 0 has its place at the network, or is over."""
        return self._line.position(self)

    @property
    def expected_wait(self) -> float:
        """Seconds until the network has a place for it, if the runs that have one go on as they do; 0 without a line.

        Infinite while none of them has taken a step, and nothing can be said.
        """
        return self._line.expected_wait(self)

    @property
    def over(self) -> bool:
        """Whether it has come to its end: finished, failed or closed."""
        return self._over

    def __iter__(self) -> Iterator[Step]:
        """Each step that is there in time, to the last, which has the `result`; raises what ended the run."""
        return self.steps()  # type: ignore[return-value]  # None comes only to those who ask for it

    def steps(self, every: float | None = None) -> Iterator[Step | None]:
        """As iterating, but gives None after `every` seconds without news: time to tell the place in line."""
        seen, step, over = 0, None, False
        while not over or step is not None:
            seen, step, over = self._wait_for_news(seen, every)
            if step is not None or not over:
                yield step
        if self._error is not None:
            raise self._error

    async def news(self, every: float) -> AsyncGenerator[Step | None]:
        """As `steps`, for asyncio: whoever waits takes no thread."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.set)

        seen, step, over = 0, None, False
        with self._news:
            self._wake = [*self._wake, wake]
        try:
            while not over or step is not None:
                told.clear()
                seen, step, over = self._wait_for_news(seen, 0)
                if step is not None:
                    yield step
                elif not over:
                    try:
                        await asyncio.wait_for(told.wait(), every)
                    except asyncio.TimeoutError:
                        yield None
        finally:
            with self._news:
                self._wake = [other for other in self._wake if other is not wake]
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave: the readers' loops end, and the network goes on without the run from its next turn."""
        self._end()

    def publish(self, step: Step) -> None:
        """Tell a step, by whoever runs it; one that has its result is the last."""
        with self._news:
            if self._over or step.index <= self._painted:
                return
            if step.images is not None:
                self._painted = step.index
                self._kept = deque((told for told in self._kept if told[1].index != step.index), KEPT)
            self._told += 1
            self._kept.append((self._told, step))
            self._over = step.result is not None
            self._tell()

    def fail(self, error: Exception) -> None:
        """End the run by an error, which its readers are raised."""
        self._end(error)

    def _wait_for_news(self, seen: int, seconds: float | None) -> tuple[int, Step | None, bool]:
        """The first step that was told after `seen` and is kept, with its number, or None; and whether it is over."""
        with self._news:
            self._news.wait_for(lambda: self._over or self._told > seen, seconds)
            return *next((told for told in self._kept if told[0] > seen), (seen, None)), self._over

    def _end(self, error: Exception | None = None) -> None:
        with self._news:
            if not self._over:
                self._over, self._error = True, error
                self._tell()

    def _tell(self) -> None:
        self._news.notify_all()
        for wake in self._wake:
            wake()
