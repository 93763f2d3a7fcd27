"""Bodies of requests: their limits, and a sentence where a body can't be read or an upload can't be written."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from gradio import route_utils, routes
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

UPLOAD = "/gradio_api/upload"
MAX_BODY = 4 * 2**20
"""Bytes in the body of a call; the longest prompt that is read takes a hundredth. Gradio bounds uploads itself."""
MAX_SIGNS = 100_000
"""Commas and opening brackets in the body of a call, those of its texts too: parsing takes time for each value."""
MAX_VALUES, MAX_DEPTH = 1000, 32
"""Values in a call, and lists or objects inside one another: Gradio walks through all of them again and again."""
TOO_MANY = f"a call has at most {MAX_VALUES:,} values, {MAX_DEPTH} deep: send shorter ones"
MAX_NAME = 100
"""Characters in the name of a visit or of an event: Gradio keeps them for as long as it remembers the visit."""
MAX_FILES = 8
"""Files in one upload, each of which is open until all are there; the page sends one at a time."""
MAX_UPLOADS = 100
"""Uploads whose progress the page may ask for."""
CALL_SECONDS, UPLOAD_SECONDS = 60.0, 600.0
"""Seconds that a body may take to come."""


class BodyCheck:
    """An ASGI middleware that reads the body of a call whole and refuses one that is too large, odd or slow."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer in a sentence."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
        elif scope["path"].endswith(UPLOAD):
            await self.app(scope, in_time(receive, UPLOAD_SECONDS), send)
        else:
            try:
                messages = await read_call(in_time(receive, CALL_SECONDS))
                scope["size"] = sum(len(message.get("body", b"")) for message in messages)
            except HTTPException as error:
                log.info("refused: %s", error.detail)
                await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
                return

            async def replay() -> Message:
                return messages.pop(0) if messages else await receive()

            await self.app(scope, replay, send)


def in_time(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that raises a 408 if the body is not whole so many seconds from now."""
    end, whole = time.monotonic() + seconds, False

    async def receive_in_time() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), end - time.monotonic())
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took more than {seconds:g} s to come: send it again") from None
        whole = not message.get("more_body", False)
        return message

    return receive_in_time


async def read_call(receive: Receive) -> list[Message]:
    """Return the messages that bring the body of a call. Raises a 413 or a 400, with a sentence, if it is refused."""
    messages: list[Message] = []
    size = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if size > MAX_BODY:
            raise HTTPException(413, f"the body has more than {MAX_BODY:,} bytes: upload files, send shorter calls")
    check_call(b"".join(message.get("body", b"") for message in messages))
    return messages


def check_call(body: bytes) -> None:
    """Raise a 413 for a body with more values than any call has, and a 400 for long names; others may be no JSON."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_SIGNS:
        raise HTTPException(413, f"the body has more than {MAX_SIGNS:,} commas and brackets: send shorter calls")
    try:
        call = json.loads(body)
    except ValueError:  # the route has its own answer to that
        return
    except RecursionError:
        raise HTTPException(413, TOO_MANY) from None
    names = ("session_hash", "event_id")
    for name in names if isinstance(call, dict) else ():
        if isinstance(call.get(name), str) and len(call[name]) > MAX_NAME:
            raise HTTPException(400, f"{name} must have at most {MAX_NAME} characters: choose a shorter one")
    waiting: list[tuple[Any, int]] = [(call, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(inner)
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise HTTPException(413, TOO_MANY)
        waiting += ((one, depth + 1) for one in inner)


class FilesOnly(route_utils.GradioMultiPartParser):
    """Gradio's parser of uploads, for a few files and nothing else: it would keep a field of any length in memory."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"max_files": MAX_FILES, "max_fields": 0})


class Newest(defaultdict[str, Any]):
    """A dictionary that forgets all but the `MAX_UPLOADS` keys that were added last."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > MAX_UPLOADS:
            del self[next(iter(self))]


def bound_uploads() -> None:
    """Make Gradio read all uploads by `FilesOnly`, and forget the names of old ones, which it would keep for ever.

    In Gradio 6.31 these names alone lead to the parser and to the record of the uploads' progress.
    """
    route_utils.GradioMultiPartParser = FilesOnly  # type: ignore[misc]
    progress = routes.file_upload_statuses
    progress._statuses, progress._signals = Newest(), Newest(asyncio.Event)


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
