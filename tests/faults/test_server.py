"""The server on the open internet: nobody reads its files, passes the line, holds everybody up, or fills its memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import Image

from app import parse_arguments, serve
from tests.conftest import ROOT
from tests.e2e.conftest import free_port
from ui.live import data_uri
from ui.models import ModelHolder

from .caller import Caller

CAT = ROOT / "assets" / "examples" / "cat.jpg"
UNHEARD = 1.0
"""Seconds; as short as a busy machine can keep apart from none."""


@pytest.fixture(scope="module")
def page(bundled_model: Path) -> Iterator[gr.Blocks]:
    """`python app.py`, in this process."""
    holder = ModelHolder(device="cpu")
    holder.pipeline()
    page = serve(parse_arguments(["--port", str(free_port()), "--unheard", str(UNHEARD)]), holder)
    yield page
    page.close()


@pytest.fixture(scope="module")
def caller(page: gr.Blocks) -> Caller:
    """Somebody who speaks HTTP to it."""
    return Caller(page.local_url)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the server's that nobody uploaded."""
    path = tmp_path_factory.mktemp("secret") / "secret.png"
    path.write_bytes((ROOT / "assets" / "contact_sheet.png").read_bytes())
    return path


def photo_calls(caller: Caller, photo: dict[str, Any]) -> dict[str, tuple[int, list[Any]]]:
    """Every way to hand the page a photo."""
    return {
        "image2image": caller.public("image2image", image=photo, prompt="a", num_inference_steps=1),
        "generate": caller.private("i2i-generate", "click", Photo=photo),
        "start": caller.private("i2i-photo", "change", Photo=photo),
        "noise lab": caller.private("inside-photo", "change", Photo=photo),
    }


WAYS = ("image2image", "generate", "start", "noise lab")


@pytest.mark.parametrize("way", WAYS)
def test_a_path_of_the_servers_opens_nothing_and_tells_nothing(caller: Caller, secret: Path, way: str):
    link = Path(get_upload_folder()) / "link.png"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    paths = [
        secret,
        secret.with_name("none.png"),
        Path("/etc/passwd"),
        link,
        Path(get_upload_folder()) / ".." / secret.relative_to(Path(get_upload_folder()).parent.anchor),
        Path(get_upload_folder()),
        "a\0b.png",
        "x" * 5000,
        "",
        "http://127.0.0.1:9/x.png",
    ]
    answers = {str(caller.ask(photo_calls(caller, {"path": str(path)})[way]).get("error")) for path in paths}
    [sentence] = answers
    assert sentence.startswith("image must be uploaded here")


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_is_opened(caller: Caller, way: str):
    photo = {"path": caller.upload("cat.jpg", CAT.read_bytes()), "meta": {"_type": "gradio.FileData"}}
    assert "error" not in caller.ask(photo_calls(caller, photo)[way])


def test_a_camera_s_picture_comes_as_text_and_is_opened(caller: Caller):
    photo = {"url": data_uri(Image.new("RGB", (64, 64), "red"))}
    assert "error" not in caller.ask(photo_calls(caller, photo)["start"])


@pytest.mark.parametrize("extra", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_only_uploads_are_restored(caller: Caller, secret: Path, extra: dict[str, Any]):
    number, _ = caller.private("restore", "upload")
    assert "error" in caller.ask((number, [{"path": str(secret), **extra}]))


def test_what_a_program_uploads_and_what_the_page_made_are_opened(caller: Caller, page: gr.Blocks):
    client = Client(page.local_url, verbose=False)
    made, _ = client.predict(handle_file(str(CAT)), "a", num_inference_steps=1, api_name="/image2image")
    again = caller.ask(caller.public("text2image", prompt="a", num_inference_steps=1))["data"][0][0]["image"]
    assert made
    assert "error" not in caller.ask(photo_calls(caller, {"path": again["path"]})["image2image"])


@pytest.mark.parametrize("way", ["run", "api"])
def test_no_way_leads_round_the_line(caller: Caller, way: str):
    answer = caller.http.post(f"gradio_api/{way}/text2image", json={"data": ["a"] + [None] * 11})
    assert answer.status_code == 404
    assert "queue" in answer.text
    number, data = caller.private("t2i-generate", "click")
    answer = caller.http.post(f"gradio_api/{way}/predict", json={"fn_index": number, "data": data})
    assert answer.status_code == 404


def test_a_run_that_nobody_listens_to_ends_and_is_forgotten(
    caller: Caller, page: gr.Blocks, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "ui"):
        body = {"data": ["a", "", 150, *[None] * 5, 4, *[None] * 3]}
        ids = [caller.http.post("gradio_api/call/text2image", json=body).json()["event_id"] for _ in range(4)]
        wait_until(lambda: page._queue.event_ids_to_events)
        wait_until(lambda: not page._queue.event_ids_to_events, 5 * UNHEARD)
    assert "stopped at step" in caplog.text
    assert not set(ids) & {*page._queue.pending_messages_per_session, *page._queue.pending_event_ids_session}


def test_who_listens_is_heard_out(caller: Caller):
    call = caller.public("text2image", prompt="a", num_inference_steps=40)
    begun = time.monotonic()
    assert caller.ask(call)["data"][1]["finished"]
    assert time.monotonic() - begun > UNHEARD, "the run was too quick to show anything: ask for more steps"


def test_a_session_that_is_over_leaves_nothing_in_the_line(caller: Caller, page: gr.Blocks):
    caller.ask(caller.public("text2image", prompt="a", num_inference_steps=1))
    wait_until(lambda: not page._queue.pending_messages_per_session and not page._queue.pending_event_ids_session)


def wait_until(there: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something to be true; AssertionError where it is not in time."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
