"""How often a stream sends a message: the more streams there are, the less often each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MESSAGES = 40
"""Messages a second of all streams together: each is an event of Gradio's, on the one thread that serves everybody."""


class MessageRate:
    """Spaces messages: n streams together send `MESSAGES` * n / (n - 1) a second, and one alone is not slowed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._streams = clock, 0

    @contextmanager
    def stream(self, least: float = 0.0) -> Iterator[Callable[[], bool]]:
        """Add a stream from its first message on; the function returns whether one is due, and counts it as sent if so.

        least: seconds between two messages of this stream, however few streams there are.
        """
        sent = -math.inf

        def due() -> bool:
            nonlocal sent
            now = self._clock()
            if sent == -math.inf:
                self._streams += 1
            if now - sent < max(least, (self._streams - 1) / MESSAGES):
                return False
            sent = now
            return True

        try:
            yield due
        finally:
            if sent > -math.inf:
                self._streams -= 1
