"""The names that the page answers to.

A check against DNS rebinding: a page of another site, whose name suddenly means this machine, could otherwise read all
answers. Not Starlette's TrustedHostMiddleware, whose answer names no remedy and which leaves no line in the log.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stable_diffusion.request import shown

log = logging.getLogger(__name__)

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class HostCheck:
    """An ASGI middleware that refuses requests whose Host header names none of `hosts`."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        host = "" if scope["type"] == "lifespan" else Headers(scope=scope).get("host", "")
        if scope["type"] == "lifespan" or hostname(host) in self.hosts:
            await self.app(scope, receive, send)
            return
        log.info("refused: the host %s", shown(host))
        text = f"This page does not answer to the name {shown(host)}: start it with --allow-host and that name."
        await PlainTextResponse(text, status_code=421)(scope, receive, send)  # Misdirected Request


def hostname(host: str) -> str | None:
    """Return the name in a Host header without its port, or None for a header without one."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens at that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
