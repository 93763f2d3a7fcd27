"""Raw HTTP to the page, as somebody writes it who means no good."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import httpx

from app import parse_arguments, serve
from tests.e2e.conftest import free_port
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels

TIMEOUT = 120.0


def sentence_of(answer: dict[str, Any]) -> str:
    """The refusal in an answer, without the element that names its field to the page; "" for none."""
    return re.sub(r"<[^>]*>", "", str(answer.get("error") or ""))


@contextmanager
def served(*flags: str) -> Iterator[gr.Blocks]:
    """`python app.py` with these flags, in this process."""
    options = parse_arguments(["--port", str(free_port()), *flags])
    holder = LoadedModels(Catalogue(), device="cpu", limits=options.limits)
    holder.pipeline()
    page = serve(options, holder, Local(holder))
    yield page
    page.close()


class Caller:
    """Calls a page's endpoints, the public ones and its own, with whatever values."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=TIMEOUT)
        config = self.http.get("config").raise_for_status().json()
        self.components = {one["id"]: one["props"] for one in config["components"]}
        self.endpoints = [one for one in config["dependencies"] if one["backend_fn"]]

    def public(self, name: str, **values: Any) -> tuple[int, list[Any]]:
        """The number of an endpoint for programs, and its data with these values."""
        [endpoint] = [one for one in self.endpoints if one["api_name"] == name]
        return self.filled(endpoint, values)

    def private(self, elem_id: str, event: str, **values: Any) -> tuple[int, list[Any]]:
        """The number of the page's first endpoint for an event of a component, and its data as the page opens.

        `values` go by the labels of the controls.
        """
        [component] = [one for one, props in self.components.items() if props.get("elem_id") == elem_id]
        endpoint = next(one for one in self.endpoints if [component, event] in one["targets"])
        return self.filled(endpoint, values)

    def filled(self, endpoint: dict[str, Any], values: dict[str, Any]) -> tuple[int, list[Any]]:
        """An endpoint's number, and its data: each control's own value where `values` has none by its label."""
        props = [self.components[one] for one in endpoint["inputs"]]
        names = [str(one.get("label")).split(";")[0].split(":")[0] for one in props]
        assert values.keys() <= set(names), names
        return endpoint["id"], [values.get(name, one.get("value")) for name, one in zip(names, props, strict=True)]

    def post(self, route: str, body: Any) -> httpx.Response:
        """Send a body as JSON, with NaN, which httpx refuses."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self.http.post(f"gradio_api/{route}", content=content, headers=headers)

    def join(self, call: tuple[int, list[Any]], session: str, **more: Any) -> httpx.Response:
        """Put a call into the line and do not listen; `more` is what else its body says."""
        number, data = call
        return self.post("queue/join", {"fn_index": number, "data": data, "session_hash": session, **more})

    def ask(self, call: tuple[int, list[Any]], session: str | None = None, **more: Any) -> dict[str, Any]:
        """What a call ends with: its `data`, or its `error`; `session` None is a visit of its own."""
        session = session or uuid.uuid4().hex
        self.join(call, session, **more).raise_for_status()
        ended: dict[str, Any] = {}
        begun = time.monotonic()
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():  # where nothing else comes, a heartbeat does
                assert time.monotonic() - begun < TIMEOUT, f"{call} never ends"
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    ended = message["output"]
        return ended

    def upload(self, name: str, content: bytes) -> str:
        """Where the server keeps an uploaded file."""
        [path] = self.http.post("gradio_api/upload", files={"files": (name, content)}).raise_for_status().json()
        return path
