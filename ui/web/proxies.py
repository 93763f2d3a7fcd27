"""The network addresses of visitors who come through a proxy."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send


class ProxyAddress:
    """An ASGI middleware that takes a visitor's address from the header in which the proxy passes it on.

    Of several addresses the last counts, which the nearest proxy added: a client may have sent the others.
    """

    def __init__(self, app: ASGIApp, header: str):
        self.app, self.header = app, header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the address of the header if there is one."""
        values = [] if scope["type"] == "lifespan" else Headers(scope=scope).getlist(self.header)
        address = ",".join(values).rpartition(",")[2].strip()
        await self.app({**scope, "client": (address, 0)} if address else scope, receive, send)
