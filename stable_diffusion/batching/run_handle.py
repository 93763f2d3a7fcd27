"""A caller's handle on a run in an engine: its newest steps, its place in the queue, and the way to leave."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..run import Step

KEPT_STEPS = 4
"""Number of steps that wait for their readers: a reader who is late for a moment loses none; pictures take memory."""


class Queue(Protocol):
    """The queue in which runs wait for a slot."""

    def position(self, handle: RunHandle) -> int:
        """See `RunHandle.position`."""
        ...

    def expected_wait(self, handle: RunHandle) -> float:
        """See `RunHandle.expected_wait`."""
        ...


class RunHandle:
    """A run that an engine was asked for: iterate over its steps, close it to leave.

    The newest steps are kept: a slow reader misses some, but never the last. The engine publishes every step without
    pictures, and the preview worker publishes it with pictures: before that on a processor, where the plain step is
    then dropped; otherwise afterwards, possibly behind later steps. Any number of threads may read independently, from
    any time on. A run without readers goes on; a closed one gives its slot back at the engine's next turn.
    """

    def __init__(self, owner: Hashable, queue: Queue):
        self.owner = owner
        self._queue = queue
        self._changed = threading.Condition()
        self._wake: list[Callable[[], None]] = []
        self._published = 0
        self._kept: deque[tuple[int, Step]] = deque(maxlen=KEPT_STEPS)  # numbered in order of publication
        self._pictured = 0  # the index of the newest step that had pictures
        self._ended = False
        self._error: Exception | None = None

    @property
    def position(self) -> int:
        """Place in the queue: 1 is next; 0 for a run that has a slot or has ended."""
        return self._queue.position(self)

    @property
    def expected_wait(self) -> float:
        """Seconds until the run gets a slot, if the runs in slots continue at their pace; 0 outside the queue.

        Infinite while none of them has taken a step.
        """
        return self._queue.expected_wait(self)

    @property
    def ended(self) -> bool:
        """Whether the run has finished, failed or was closed."""
        return self._ended

    def __iter__(self) -> Iterator[Step]:
        """Yield each step that is read in time, up to the last, which has the `result`; raise the run's error."""
        return self.steps()  # type: ignore[return-value]  # without `every` there is no None

    def steps(self, every: float | None = None) -> Iterator[Step | None]:
        """Yield as `__iter__` does, and None after every `every` seconds without a step."""
        seen, step, ended = 0, None, False
        while not ended or step is not None:
            seen, step, ended = self._next(seen, every)
            if step is not None or not ended:
                yield step
        if self._error is not None:
            raise self._error

    async def updates(self, every: float) -> AsyncGenerator[Step | None]:
        """Yield as `steps` does, for asyncio: waiting occupies no thread."""
        loop, published = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(published.set)

        seen, step, ended = 0, None, False
        with self._changed:
            self._wake = [*self._wake, wake]
        try:
            while not ended or step is not None:
                published.clear()
                seen, step, ended = self._next(seen, 0)
                if step is not None:
                    yield step
                elif not ended:
                    try:
                        await asyncio.wait_for(published.wait(), every)
                    except asyncio.TimeoutError:
                        yield None
        finally:
            with self._changed:
                self._wake = [other for other in self._wake if other is not wake]
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave: readers' loops end, and the engine drops the run at its next turn."""
        self._end()

    def publish(self, step: Step) -> None:
        """Hand a step to the readers (for the engine); a step with a result is the last."""
        with self._changed:
            if self._ended or step.index <= self._pictured:
                return
            if step.images is not None:
                self._pictured = step.index
                self._kept = deque((kept for kept in self._kept if kept[1].index != step.index), KEPT_STEPS)
            self._published += 1
            self._kept.append((self._published, step))
            self._ended = step.result is not None
            self._notify()

    def fail(self, error: Exception) -> None:
        """End the run by an error (for the engine); its readers raise it."""
        self._end(error)

    def _next(self, seen: int, seconds: float | None) -> tuple[int, Step | None, bool]:
        """Return number and value of the first kept step published after `seen`, or None, and whether the run ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._published > seen, seconds)
            return *next((kept for kept in self._kept if kept[0] > seen), (seen, None)), self._ended

    def _end(self, error: Exception | None = None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wake:
            wake()
