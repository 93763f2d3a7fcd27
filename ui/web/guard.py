"""What stands between the page and the open internet: to whom it answers, and what a browser may do with an answer."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection
from urllib.parse import urlsplit

import gradio as gr
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from gradio.exceptions import InvalidPathError
from gradio.route_utils import FnIndexInferError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stable_diffusion.request import shown

from ..runs.errors import where

log = logging.getLogger(__name__)

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
NOWHERE, IN_A_SPACE = "'none'", "'self' https://huggingface.co https://*.hf.space"
"""Whose pages may frame this one."""
POLICY = {
    "default-src": "'self'",
    # Gradio's page has its settings in a script, and builds templates and scripts of gr.HTML as functions from text.
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",  # the camera
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",  # a photo that was pasted or cut is read back from a blob
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
"""What a page may load, and from where: nothing from another host. (https://www.w3.org/TR/CSP3/)"""


MAX_BODY = 4 * 2**20
"""Bytes in the body of a call; the longest prompt that is read takes a hundredth. Gradio bounds uploads itself."""
UPLOAD = "/gradio_api/upload"


CLOSED = tuple(
    f"/gradio_api/{route}"
    for route in (
        *("file=http", "file/http", "proxy="),  # what another server has, fetched by this one
        *("deep_link", "process_recording", "stream/"),  # keeps what anybody sends
        *("component_server", "custom_component/", "dev/", "vibe"),
    )
)
"""How the routes begin that Gradio has and this page does not use."""

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, FnIndexInferError)
"""What Gradio raises where a call is none."""
NO_CALL = "This is no call that the page takes: `Use via API` on the page tells which there are."
NOT_UPLOADED = "A file must be uploaded here, or be one of the examples: choose it again."
NO_ARGUMENT = "An argument is not of the form that this call takes: `Use via API` on the page tells which."


class Guard:
    """An ASGI middleware: names that are not in `hosts`, closed routes, large bodies and malformed calls are refused.

    All answers carry its headers.

    Names are checked against DNS rebinding: a page of another site, whose name suddenly means this machine, could
    otherwise read all answers. `hosts` None allows every name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, frame_ancestors: str):
        self.app, self.hosts = app, hosts
        policy = {**POLICY, "frame-ancestors": frame_ancestors}
        self.headers = {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",  # a link to a run holds its prompt
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page answer."""

        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
                begun = True
            await send(message)

        if scope["type"] in ("http", "websocket") and self.hosts is not None:
            host = Headers(scope=scope).get("host", "")
            if hostname(host) not in self.hosts:
                log.info("refused: the host %s", shown(host))
                text = f"This page does not answer to the name {shown(host)}: start it with --allow-host and that name."
                await PlainTextResponse(text, status_code=421)(scope, receive, send_guarded)  # Misdirected Request
                return
        if scope["type"] != "http":
            await self.app(scope, receive, send_guarded)
            return
        if any(route in scope["path"].lower() for route in CLOSED):
            await PlainTextResponse("This page has no use for that.", status_code=403)(scope, receive, send_guarded)
            return
        if not scope["path"].endswith(UPLOAD):
            receive = bounded(receive)
        try:
            await self.app(scope, receive, send_guarded)
        except (*MALFORMED, RuntimeError) as error:
            if begun:  # a stream of a visit that is not there, which Gradio notices late: it ends
                await send({"type": "http.response.body"})
            elif isinstance(error, RuntimeError):
                raise
            else:
                await JSONResponse({"detail": NO_CALL}, status_code=400)(scope, receive, send_guarded)
            log.info("refused at %s: %s", where(error), shown(error))


def bounded(receive: Receive) -> Receive:
    """What reads a body, up to `MAX_BODY`; HTTPException beyond, whatever length was announced."""
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BODY:
            log.info("refused: a body of more than %d bytes", MAX_BODY)
            raise HTTPException(413, f"the body has more than {MAX_BODY:,} bytes: upload files, send shorter calls")
        return message

    return receive_bounded


def no_argument(error: Exception) -> gr.Error:
    """The answer to a value that Gradio can't hand to an event. Its own is a traceback in the log, and silence."""
    log.info("refused: %s", shown(str(error)))
    text = NOT_UPLOADED if isinstance(error, InvalidPathError) else NO_ARGUMENT
    return gr.Error(text, print_exception=False)


async def malformed(request: Request, error: Exception) -> Response:
    """The answer to a body that is no call. FastAPI's own repeats the body, of any length, and fails at NaN."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
    log.info("refused: %s", text)
    return JSONResponse({"detail": text}, status_code=422)


async def unwritten(request: Request, error: Exception) -> Response:
    """The answer to an upload that the server can't write; what else may fail is no matter of this one's."""
    if not isinstance(error, OSError) or not request.url.path.endswith(UPLOAD):
        raise error
    log.info("refused: an upload that can't be written: %s", error.strerror)
    text = f"The server can't keep a file ({error.strerror}): try again later."
    return PlainTextResponse(text, status_code=507)  # Insufficient Storage


def hostname(host: str) -> str | None:
    """The name in a Host header, without its port; None where there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
