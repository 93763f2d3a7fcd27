"""Whichever way a generated picture leaves, its file says that it was generated."""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from gradio_client import Client
from playwright.sync_api import Page, expect

from tests.conftest import ROOT
from tests.marks import is_marked

from .visitor import Visitor


@pytest.fixture
def finished(page: Page) -> Visitor:
    """A visitor who has just seen a run of two steps, and another one before."""
    visitor = Visitor(page)
    for count in (1, 2):
        visitor.ask(f"{count} cats", steps=2)
        visitor.generate()
        expect(page.locator("#history button.thumbnail-item")).to_have_count(count)
    return visitor


def download(finished: Visitor) -> list[bytes]:
    return [finished.file()]


def film_and_strip(finished: Visitor) -> list[bytes]:
    files = []
    for name in ("Save film", "Save strip"):
        with finished.page.expect_download() as download:
            finished.page.get_by_role("button", name=name).click()
        files.append(download.value.path().read_bytes())
    return files


def whole_visit(finished: Visitor) -> list[bytes]:
    page = finished.page
    with page.expect_download() as download:
        page.locator("#history").get_by_label("Download All").click()
    with zipfile.ZipFile(download.value.path()) as pictures:
        return [pictures.read(name) for name in pictures.namelist()]


@pytest.mark.parametrize(("way", "count"), [(download, 1), (film_and_strip, 2), (whole_visit, 2)])
def test_what_a_visitor_takes_away_is_marked(finished: Visitor, way: Callable[[Visitor], list[bytes]], count: int):
    files = way(finished)
    assert len(files) == count
    assert all(map(is_marked, files))


@pytest.mark.parametrize("with_photo", [False, True])
def test_what_a_program_gets_is_marked(client: Client, photo: dict, with_photo: bool):
    image = {"image": photo, "api_name": "/image2image"} if with_photo else {"api_name": "/text2image"}
    pictures, step = client.predict(prompt="a cat", num_inference_steps=2, num_images=2, **image)
    assert [is_marked(Path(picture["image"]).read_bytes()) for picture in pictures] == [True, True]
    assert is_marked(base64.b64decode(step["preview"].partition(",")[2])), "all that is left where the disk is full"


def test_what_a_real_photo_remains_in_is_a_composite(client: Client, photo: dict):
    pictures, _ = client.predict(photo, "a cat", strength=0.2, num_inference_steps=5, api_name="/image2image")
    assert is_marked(Path(pictures[0]["image"]).read_bytes(), "compositeWithTrainedAlgorithmicMedia")


def test_a_photo_is_not_marked():
    assert not is_marked((ROOT / "assets" / "examples" / "cat.jpg").read_bytes())
