"""Calls that the page does not take: routes of Gradio's that it has no use for, and calls of the wrong form."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.exceptions import InvalidPathError
from gradio.route_utils import FnIndexInferError
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stable_diffusion.request import shown

from .bodies import UPLOAD

log = logging.getLogger(__name__)

CLOSED_ROUTES = tuple(
    f"/gradio_api/{route}"
    for route in (
        *("file=http", "file/http", "proxy="),  # fetch files from other servers
        *("deep_link", "process_recording", "stream/"),  # store any data that a caller sends
        *("component_server", "custom_component/", "dev/", "vibe"),
    )
)
"""Prefixes of Gradio's routes that this page does not use."""
ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)
OWN_FILE = "/gradio_api/file="
"""The part of an address before the path of a file of this server, as the upload tool for language models gives it."""
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, FnIndexInferError)
"""The exceptions that Gradio raises for calls of the wrong form."""
NOT_A_CALL = "The page takes no such call: `Use via API` on the page lists its calls."
NOT_UPLOADED = (
    "A file must be uploaded here, or be one of the examples: choose it again. "
    f"Programs send its content as a data URI, or its path after an upload to {UPLOAD}."
)
BAD_ARGUMENT = "An argument is not of the form that this call takes: `Use via API` on the page describes them."


class CallCheck:
    """An ASGI middleware that answers 403 on closed routes, and 400 where a call makes Gradio fail."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if any(route in scope["path"].lower() for route in CLOSED_ROUTES):
            await PlainTextResponse("This page has no use for that.", status_code=403)(scope, receive, send)
            return
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except (*MALFORMED, RuntimeError) as error:
            if begun:  # the stream of an unknown visit, which Gradio notices late: it ends
                await send({"type": "http.response.body"})
            elif isinstance(error, RuntimeError):
                raise
            else:
                await JSONResponse({"detail": NOT_A_CALL}, status_code=400)(scope, receive, send)
            log.info("refused at %s: %s", traceback.extract_tb(error.__traceback__)[-1], shown(error))


def read_addresses(values: list[Any]) -> None:
    """Replace the address of a file that this server has by its path, wherever a value names a file, in place.

    Raises `InvalidPathError` for every other address on the network, which Gradio would fetch.
    """
    waiting = [*values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if ADDRESS.match(str(value.get("path"))):
                _, own, path = value["path"].partition(OWN_FILE)
                if not own or ADDRESS.match(path):
                    raise InvalidPathError(shown(value["path"]))
                value["path"] = unquote(path)
            value = [*value.values()]
        if isinstance(value, list):
            waiting += value


def bad_argument(error: Exception) -> gr.Error:
    """Return the message for a value that Gradio can't hand to an event; Gradio alone would log a traceback."""
    log.info("refused: %s", shown(str(error)))
    text = NOT_UPLOADED if isinstance(error, InvalidPathError) else BAD_ARGUMENT
    return gr.Error(text, print_exception=False)
