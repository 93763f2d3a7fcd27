"""Bound the number of open connections, and the time in which each must send a request.

Every connection takes one of the files that the process may open. uvicorn closes those that are idle after an answer,
but not those that never ask for anything; enough of them, and the process can't open a file any more. h11, the parser,
bounds the head of a request to 64 kB; httptools, which uvicorn prefers where it is installed, has no bound.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows, where sockets do not count as files
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

MAX_FILES = 16_384
"""Files that the process may open, if the system allows as many."""
MAX_CONNECTIONS = 4096
"""Open connections, or half of the files that the process may open if those are fewer; a page takes two or three."""
HEAD_SECONDS = 15.0
"""A connection that sends no request between two looks at it, so many seconds apart, is closed."""


class Connection(H11Protocol):
    """A connection. One more than `most` takes the place of the oldest one that waits for a request.

    If no connection waits for a request, the new one is closed.
    """

    most: ClassVar[int] = MAX_CONNECTIONS
    opened: ClassVar[dict[Connection, None]] = {}
    """All open connections, the oldest first."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.seen: object = None
        """The request that was the newest at the last look."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, and close one if there are too many."""
        super().connection_made(transport)
        self.look = self.loop.call_later(HEAD_SECONDS, self.close_if_silent)
        if len(self.opened) >= self.most:
            replaced = next((one for one in self.opened if one.waits), self)
            if replaced is self:
                log.warning("refused: a connection, for %d are busy with requests", self.most)
            replaced.transport.close()
            self.opened.pop(replaced, None)  # now, for asyncio tells of its end only after it has taken all new ones
            if replaced is self:
                return
        self.opened[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.look.cancel()
        self.opened.pop(self, None)
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def close_if_silent(self) -> None:
        """Close the connection if no request has begun since the last look."""
        if self.waits and self.cycle is self.seen:
            self.transport.close()
        else:
            self.seen = self.cycle
            self.look = self.loop.call_later(HEAD_SECONDS, self.close_if_silent)


def bound_connections(config: Config) -> None:
    """Bound the connections of the server with this configuration that are made from now on."""
    most = MAX_CONNECTIONS
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft, hard = (MAX_FILES if files == resource.RLIM_INFINITY else files for files in (soft, hard))
        files = max(soft, min(hard, MAX_FILES))
        if files > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        most = min(most, files // 2)
    config.ws_protocol_class = None  # the page uses no WebSockets, which would leave this protocol
    config.http_protocol_class = type("BoundedConnection", (Connection,), {"most": most, "opened": {}})
