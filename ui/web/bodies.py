"""Bodies of requests: a limit for calls, and a sentence where a body can't be read or an upload can't be written."""

from __future__ import annotations

import logging

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

MAX_BODY = 4 * 2**20
"""Bytes in the body of a call; the longest prompt that is read takes a hundredth. Gradio bounds uploads itself."""
UPLOAD = "/gradio_api/upload"


class BodyLimit:
    """An ASGI middleware that answers 413 to calls of more than `MAX_BODY` bytes, whatever their Content-Length."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body bounded unless it is an upload."""
        read = 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                log.info("refused: a body of more than %d bytes", MAX_BODY)
                raise HTTPException(413, f"the body has more than {MAX_BODY:,} bytes: upload files, send shorter calls")
            return message

        bounded = scope["type"] == "http" and not scope["path"].endswith(UPLOAD)
        await self.app(scope, receive_bounded if bounded else receive, send)


async def unreadable_body(request: Request, error: Exception) -> Response:
    """Answer a body of the wrong form. FastAPI's own answer repeats the body, of any length, and fails at NaN."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
    log.info("refused: %s", text)
    return JSONResponse({"detail": text}, status_code=422)


async def unwritten_upload(request: Request, error: Exception) -> Response:
    """Answer an upload that the server can't write to its disk; raise all other errors again."""
    if not isinstance(error, OSError) or not request.url.path.endswith(UPLOAD):
        raise error
    log.info("refused: an upload that can't be written: %s", error.strerror)
    text = f"The server can't keep a file ({error.strerror}): try again later."
    return PlainTextResponse(text, status_code=507)  # Insufficient Storage
