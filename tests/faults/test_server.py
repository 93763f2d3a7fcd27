"""The server on the open internet: nobody reads its files, passes the line, holds everybody up, or fills its memory."""

from __future__ import annotations

from collections.abc import Iterator
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
UNHEARD = 2.0
"""Seconds; as short as a busy machine can keep apart from none."""


@pytest.fixture(scope="module")
def page(bundled_model: Path) -> Iterator[gr.Blocks]:
    """`python app.py`, in this process."""
    holder = ModelHolder(device="cpu")
    holder.pipeline()
    page = serve(parse_arguments(["--port", str(free_port())]), holder)
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
