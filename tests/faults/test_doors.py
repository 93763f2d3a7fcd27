"""The doors by which a stranger's bytes come in before our code: connections, heads, bodies, uploads, names."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gradio as gr
import pytest
from gradio import routes

import ui.page
from tests.unit.test_hostile_images import png
from ui.web import bodies, connections

from .caller import Caller, sentence_of, served

MOST, SECONDS = 30, 0.5


@pytest.fixture(scope="module")
def page() -> Iterator[gr.Blocks]:
    """`python app.py` in this process, with few connections and little patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "MAX_CONNECTIONS", MOST)
        patch.setattr(connections, "HEAD_SECONDS", SECONDS)
        patch.setattr(ui.page, "MAX_QUEUED", 3_000_000)
        patch.setattr(bodies, "CALL_SECONDS", SECONDS)
        patch.setattr(bodies, "UPLOAD_SECONDS", SECONDS)
        with served() as page:
            yield page


@pytest.fixture(scope="module")
def caller(page: gr.Blocks) -> Caller:
    """Somebody who speaks HTTP to it."""
    return Caller(page.local_url)


def connected(caller: Caller, sent: bytes = b"") -> socket.socket:
    """Return a connection to the page that has sent these bytes and reads nothing."""
    address = caller.http.base_url
    connection = socket.create_connection((address.host, address.port), timeout=30)
    connection.sendall(sent)
    return connection


def open_sockets() -> int:
    """Return the number of sockets that this process has open, server and client together."""
    links = (Path(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(one) and os.readlink(one).startswith("socket:") for one in links)


def answer_to(caller: Caller, sent: bytes) -> bytes:
    """Return all that the page answers to these bytes until it closes the connection."""
    with connected(caller, sent) as connection:
        parts = iter(lambda: connection.recv(65536), b"")
        try:
            return b"".join(parts)
        except ConnectionResetError:
            return b""


HEAD = b"POST /gradio_api/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nContent-Type: %s\r\n\r\n"
MULTIPART = b"multipart/form-data; boundary=x"
SLOW = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\n",
    "half a body": HEAD % (b"queue/join", b"application/json") + b"{",
    "half an upload": HEAD % (b"upload", MULTIPART) + b"--x\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_request_that_does_not_come_is_not_awaited_for_ever(caller: Caller, sent: bytes):
    assert answer_to(caller, sent)[:12] in (b"", b"HTTP/1.1 408")


def test_idle_connections_take_the_place_of_nobody(caller: Caller):
    before = open_sockets()
    with ExitStack() as stack:
        for _ in range(4 * MOST):
            stack.enter_context(connected(caller))
        assert caller.http.get("health").status_code == 200
        assert open_sockets() - before <= 5 * MOST + 2, "the server has at most its own number open"


def test_connections_busy_with_requests_are_bounded(caller: Caller, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ui"), ExitStack() as stack:
        # Of those that are taken in one turn of the loop, none is busy yet: on a slow machine it takes many more.
        for number in range(20 * MOST):
            request = b"GET /gradio_api/heartbeat/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % number
            stack.enter_context(connected(caller, request))
            if "a connection, for" in caplog.text:
                break
            time.sleep(0.05)
        assert number >= MOST, "as many as allowed are taken"
        assert "a connection, for" in caplog.text
    time.sleep(SECONDS)
    assert caller.http.get("health").status_code == 200, "those who left make room"


def test_the_head_of_a_request_is_bounded(caller: Caller):
    assert answer_to(caller, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)[:12] in (b"", b"HTTP/1.1 400")


CALLS = {
    "brackets": "[" * 100_000 + "]" * 100_000,
    "objects": json.dumps({"data": [{}] * 200_000}),
    "values": json.dumps({"data": list(range(5_000)), "fn_index": 0, "session_hash": "a"}),
    "depth": '{"fn_index": 0, "session_hash": "a", "data": ' + "[" * 90 + "]" * 90 + "}",
    "name of a visit": json.dumps({"data": [], "fn_index": 0, "session_hash": "x" * 1_000_000}),
    "name of an event": json.dumps({"event_id": "x" * 1_000, "session_hash": "a", "fn_index": 0}),
}
ROUTES = ("queue/join", "run/predict", "call/text2image", "call/v2/text2image", "cancel", "reset", "none")


@pytest.mark.parametrize("body", CALLS.values(), ids=CALLS)
def test_a_call_that_is_odd_is_refused_before_anybody_reads_it(caller: Caller, page: gr.Blocks, body: str):
    visits = set(page.state_holder.session_data)
    for route in ROUTES:
        answer = caller.http.post(f"gradio_api/{route}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413), (route, answer.text)
        assert ": " in answer.json()["detail"], "with a remedy"
    assert set(page.state_holder.session_data) == visits


def test_a_visit_keeps_no_values_of_its_calls(caller: Caller, page: gr.Blocks):
    visit, text = uuid.uuid4().hex, "x" * 1_000_000
    assert caller.ask(caller.private("t2i-generate", "click", Prompt=text), visit)["error"]
    assert text not in json.dumps(page.state_holder[visit].config_values, default=str)


@pytest.mark.parametrize(
    "files",
    [{"files": (None, "x" * 1000)}, [("files", (f"{i}.png", png(8, 8))) for i in range(20)]],
    ids=["a field", "many files"],
)
def test_an_upload_is_a_few_files_and_nothing_else(caller: Caller, files: object):
    answer = caller.http.post("gradio_api/upload", files=files)
    assert answer.status_code == 400
    assert "Too many" in answer.text


def test_the_names_of_old_uploads_are_forgotten(page: gr.Blocks):
    progress = routes.file_upload_statuses
    for number in range(2 * bodies.MAX_UPLOADS):
        progress.track(f"upload {number}")
        assert progress._signals[f"question {number}"]
    assert len(progress._statuses) == len(progress._signals) == bodies.MAX_UPLOADS
    assert not progress.is_done(f"upload {number}")


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("what", ["a lone surrogate", "its note", "its other prompt", "a file of another kind"])
def test_what_nobody_can_read_is_refused_without_a_traceback(
    caller: Caller, what: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    half = "a \ud800 cat"
    restore, _ = caller.private("restore", "upload")
    call, sentence = {
        "a lone surrogate": (caller.private("t2i-generate", "click", Prompt=half), "Prompt has half of a letter"),
        "its note": (caller.private("t2i-prompt", "change", Prompt=half), ""),
        "its other prompt": (
            caller.public("text2image", prompt="a", negative_prompt=half),
            "negative_prompt has half of a letter at place 2",
        ),
        "a file of another kind": (
            (restore, [{"path": caller.upload("a.tga", b"x"), **META}, None]),
            "Invalid file type",
        ),
    }[what]
    answer = caller.ask(call) if sentence else caller.post("run/predict", {"fn_index": call[0], "data": call[1]}).json()
    assert sentence_of(answer).startswith(sentence)
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]


def test_calls_that_wait_take_no_more_memory_than_there_is(caller: Caller):
    number, data = caller.public("text2image", prompt="a", num_inference_steps=60)
    body = json.dumps({"fn_index": number, "data": data, "session_hash": "a"}) + " " * 1_000_000
    headers = {"Content-Type": "application/json"}
    answers = [caller.http.post("gradio_api/queue/join", content=body, headers=headers) for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 503, 503]
    assert answers[-1].json()["detail"].startswith("The page is busy with large calls")
